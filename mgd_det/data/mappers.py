"""Reading images as a pipeline reads them at test time, by whatever mapper it has."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any, Callable

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.data.detection_utils import build_augmentation
from torch import Tensor

from mgd_det.detectron2_compat import mapper_of
from mgd_det.errors import ConfigError
from mgd_det.rng import isolated_rng

from .coco_schema import JsonObject
from .readable import NamingMapper

logger = logging.getLogger("detectron2." + __name__)

Mapper = Callable[[JsonObject], Any]  # a record of a data set -> what the model takes, None to skip it
_REMEDY = (
    "Give RematchHook(cfg, mapper=...) a function from a record of the data set to a dict with its image, "
    "without augmentation."
)


def stock_mapper(cfg: CfgNode, **options: object) -> DatasetMapper:
    """Returns Detectron2's mapper as it is at test time."""
    return DatasetMapper(cfg, False, **options)


def needed(record: JsonObject, mapper: Mapper) -> JsonObject:
    """Returns what a mapper needs of a record to read its image, without the labels, which take much memory.

    A mapper that may be for training gets all of it.
    """
    if type(mapper) is DatasetMapper:
        keys = ("file_name", "image_id", "height", "width")
        return {key: record[key] for key in keys if key in record}
    if getattr(mapper, "is_train", True):
        return record
    return {key: value for key, value in record.items() if key != "annotations"}


def test_time_mapper(
    cfg: CfgNode,
    read_record: Callable[[], JsonObject],
    train_loader: object,
    build_test_loader: Callable[[CfgNode, str], object] | None,
) -> Mapper:
    """Returns the mapper with which a trainer's pipeline reads images at test time.

    That is Detectron2's, where the training loader has Detectron2's own. Otherwise it is the first that can
    read images of: one of the project's own in the test loader; that of the training loader, without its
    augmentation; and the test loader's.

    Args:
        cfg: the run's config.
        read_record: reads a record of the training set, on which mappers are tried. It is not called if the
            training loader has Detectron2's mapper.
        train_loader: the trainer's data loader.
        build_test_loader: the trainer's function of that name, None if it has none.

    Raises:
        ConfigError: none of them can read the record.
    """
    training = mapper_of(train_loader)
    if isinstance(training, NamingMapper):
        training = training.mapper
    if training is None:
        logger.warning(
            "the matching reads images by Detectron2's DatasetMapper, since no mapper is found in the "
            "training loader, a %s. If it reads them otherwise: %s",
            type(train_loader).__name__,
            _REMEDY,
        )
        return stock_mapper(cfg)
    if isinstance(training, DatasetMapper) and type(training) is DatasetMapper:
        return stock_mapper(cfg, image_format=training.image_format)
    reason: object = "it returns no image"
    record = read_record()
    with isolated_rng():
        for mapper, words in _candidates(cfg, training, build_test_loader):
            try:
                read = mapper(copy.deepcopy(needed(record, mapper)))
            except Exception as error:  # mappers of other projects can raise anything
                reason = f"{type(error).__name__}: {error}"
                continue
            if isinstance(read, Mapping) and isinstance(read.get("image"), Tensor):
                logger.info("the matching reads images by the %s: %s", words, _name(mapper))
                return mapper
    problem = f"cannot read images for the matching ({reason})"
    raise ConfigError("mapper", _name(training), problem, _REMEDY)


def _candidates(
    cfg: CfgNode, training: Mapper, build_test_loader: Callable[[CfgNode, str], object] | None
) -> Iterator[tuple[Mapper, str]]:
    testing = None
    if build_test_loader is not None and cfg.DATASETS.TEST:
        try:
            testing = mapper_of(build_test_loader(cfg, cfg.DATASETS.TEST[0]))
        except Exception as error:  # which is then for the evaluation to report
            logger.warning("the test loader cannot be built (%s: %s)", type(error).__name__, error)
    if testing is not None and type(testing) is not DatasetMapper:
        yield testing, "test loader's mapper"
    plain, whole = _without_augmentation(cfg, training)
    yield plain, "training loader's mapper" + ("" if whole else ", whose augmentation stays. " + _REMEDY)
    if testing is not None:
        yield testing, "test loader's mapper"


def _without_augmentation(cfg: CfgNode, mapper: Mapper) -> tuple[Mapper, bool]:
    """Returns a copy of a mapper that is not for training, and whether it has no augmentation any more.

    The names are those of Detectron2's own mapper and, before version 0.2, of its copies in many projects.
    """
    if not hasattr(mapper, "is_train"):
        return mapper, False
    plain: Any = copy.copy(mapper)
    plain.is_train = False
    names = [name for name in ("augmentations", "tfm_gens") if hasattr(plain, name)]
    for name in names:
        resizing = build_augmentation(cfg, False)
        as_list = isinstance(getattr(plain, name), list)
        setattr(plain, name, resizing if as_list else T.AugmentationList(resizing))
    if hasattr(plain, "crop_gen"):
        plain.crop_gen = None
    return plain, bool(names)


def _name(mapper: Mapper) -> str:
    return getattr(mapper, "__qualname__", type(mapper).__qualname__)
