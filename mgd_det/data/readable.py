"""Naming the image that a mapper cannot read, or going on without it."""

from __future__ import annotations

import logging
from typing import Any, Callable

from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from mgd_det.detectron2_types import State

logger = logging.getLogger("detectron2." + __name__)

# What opening, decoding and the comparison with the json raise. Pillow's decoder of PNGs raises SyntaxErrors.
_READING = (OSError, SyntaxError, SizeMismatchError, Image.DecompressionBombError)


class UnreadableImage(ValueError):
    """Raised for an image that cannot be read; the message names it and the way out.

    It has one argument, with which a data loader's worker process hands it on.
    """


class NamingMapper:
    """Calls another mapper, and names the image where that cannot read one.

    Args:
        mapper: maps a record of a data set to an image for a model.
        skip: leave such images out, with a warning; a Detectron2 loader then takes others in their place.

    Raises:
        UnreadableImage: when called with an image that cannot be read, unless `skip`.
    """

    def __init__(self, mapper: Callable[[State], Any], *, skip: bool = False) -> None:
        self.mapper, self.skip = mapper, skip
        self._skipped = 0  # in this process

    def __call__(self, record: State) -> Any:
        try:
            return self.mapper(record)
        except _READING as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            problem = f"{record.get('file_name')} cannot be read ({reason})"
        if not self.skip:
            raise UnreadableImage(
                f"{problem}. Replace it, take it out of the set, or set DATALOADER.SKIP_UNREADABLE True."
            )
        self._skipped += 1
        logger.warning("left out: %s; %d so far in this process", problem, self._skipped)
        return None
