"""Registering COCO-format data sets from the config, and checking data before a run."""

from __future__ import annotations

import json
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from .config import DISTILLER
from .errors import ConfigError

REGISTER_KEY = "DATASETS.REGISTER"
_CLASS_COUNT_KEYS = {"RetinaNet": "MODEL.RETINANET.NUM_CLASSES"}


def register_datasets(cfg: CfgNode) -> None:
    """Register `DATASETS.REGISTER` in Detectron2's catalogs; once registered, again is fine.

    Raises:
        ConfigError: an entry is not [name, annotation.json, image_root], or its name is taken.
    """
    for entry in cfg.DATASETS.REGISTER:
        if not (isinstance(entry, (list, tuple)) and [type(x) for x in entry] == [str] * 3):
            raise ConfigError(
                REGISTER_KEY,
                entry,
                "not of the form [name, annotation.json, image_root]",
                'Write for example DATASETS.REGISTER \'[["mine", "mine/train.json", "mine/images"]]\'.',
            )
        name, annotations, root = entry
        if name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            if (metadata.get("json_file"), metadata.get("image_root")) != (annotations, root):
                raise ConfigError(
                    REGISTER_KEY,
                    entry,
                    f"the name {name!r} is already registered with other files",
                    "Choose another name, here and in DATASETS.TRAIN or DATASETS.TEST.",
                )
            continue
        register_coco_instances(name, {}, annotations, root)


def check_datasets(cfg: CfgNode, *, training: bool) -> None:
    """Check the data sets that a run will use, as far as can be done without loading images.

    Args:
        cfg: a config whose `DATASETS.REGISTER` has been registered.
        training: whether DATASETS.TRAIN is used, beside DATASETS.TEST.

    Raises:
        ConfigError: a set is not registered, lacks its files, is not COCO format, has no boxes to
            train on, or more classes than the model.
    """
    registered = {entry[0] for entry in cfg.DATASETS.REGISTER}
    if training and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN", (), "no training set is named", "Name at least one.")
    uses = [("DATASETS.TRAIN", name) for name in (cfg.DATASETS.TRAIN if training else ())]
    uses += [("DATASETS.TEST", name) for name in cfg.DATASETS.TEST]
    for key, name in uses:
        if name not in DatasetCatalog:
            raise ConfigError(
                key,
                name,
                "no data set of that name is registered",
                f"List it in {REGISTER_KEY}, or register it with Detectron2 before.",
            )
        metadata = MetadataCatalog.get(name)
        _check_files(key, name, metadata)
        if name in registered:
            content = _read_coco(name, metadata.json_file)
            num_classes = len(content["categories"])
            if key == "DATASETS.TRAIN":
                _check_boxes(name, metadata.json_file, content)
        else:  # a set of millions of boxes is not read twice; its classes are known where it says so
            num_classes = len(metadata.get("thing_classes") or ())
        _check_class_count(cfg, name, num_classes)


def _check_files(key: str, name: str, metadata: Any) -> None:
    for kind, attribute in (("annotation file", "json_file"), ("image folder", "image_root")):
        path = metadata.get(attribute)
        if path and not PathManager.exists(path):
            raise ConfigError(
                key,
                name,
                f"its {kind} {path} does not exist",
                "Correct the path (relative ones start at the working directory), or set the "
                "environment variable DETECTRON2_DATASETS to where Detectron2's built-in sets are.",
            )


def _read_coco(name: str, path: str) -> dict[str, Any]:
    remedy = "Give a file with the COCO entries images, annotations and categories."
    try:
        with PathManager.open(path) as f:
            content = json.load(f)
    except (ValueError, IsADirectoryError) as error:
        raise ConfigError(REGISTER_KEY, name, f"{path} is not JSON ({error})", remedy) from error
    entries = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(e), list) for e in entries):
        raise ConfigError(REGISTER_KEY, name, f"{path} is not in COCO format", remedy)
    return content


def _check_boxes(name: str, path: str, content: dict[str, Any]) -> None:
    if not any("bbox" in a and not a.get("iscrowd", 0) for a in content["annotations"]):
        raise ConfigError(
            "DATASETS.TRAIN",
            name,
            f"{path} holds no boxes to train on",
            "Give a file whose annotations have a bbox and are not all crowds.",
        )


def _check_class_count(cfg: CfgNode, name: str, num_classes: int) -> None:
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture == DISTILLER:
        architecture = cfg.DISTILL.STUDENT_ARCHITECTURE
    key = _CLASS_COUNT_KEYS.get(architecture, "MODEL.ROI_HEADS.NUM_CLASSES")
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    if num_classes > node:
        raise ConfigError(
            key,
            node,
            f"the data set {name!r} has {num_classes} classes",
            f"Set {key} {num_classes}.",
        )
