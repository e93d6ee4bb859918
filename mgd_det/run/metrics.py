"""Reading metrics.json, in which Detectron2 logs a JSON object of scalars on each line."""

from __future__ import annotations

import json
import os

from detectron2.utils.file_io import PathManager


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Returns the lines of a metrics.json in their order, each the scalars by name, `iteration` among them.

    A line that is not whole is left out: a run that is under way or was killed leaves one at the end, and one
    that was resumed after that has it in the middle. NaN and infinities stay.

    Raises:
        OSError: the file cannot be read.
    """
    with PathManager.open(os.fspath(path), errors="replace") as file:
        lines = file.read().splitlines()
    found = []
    for line in lines:
        try:
            scalars = json.loads(line)
        except ValueError:
            continue
        if isinstance(scalars, dict):
            found.append({name: v for name, v in scalars.items() if isinstance(v, (int, float))})
    return found
