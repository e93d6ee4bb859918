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
from .lazy import lazy_student, load_lazy, num_classes

REGISTER_KEY = "DATASETS.REGISTER"
_CLASS_COUNT_KEYS = {
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}


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


def check_datasets(cfg: CfgNode, *, training: bool, model: CfgNode | None = None) -> None:
    """Check the data sets that a run will use, as far as can be done without loading images.

    Args:
        cfg: a config whose `DATASETS.REGISTER` has been registered.
        training: whether DATASETS.TRAIN is used, beside DATASETS.TEST.
        model: the config of the model that predicts, where it is not `cfg`.

    Raises:
        ConfigError: a set is not registered, lacks its files, is not COCO format, has no boxes to
            train on, or more classes than the model.
    """
    registered = {entry[0] for entry in cfg.DATASETS.REGISTER}
    if training and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN", (), "no training set is named", "Name at least one.")
    if not training and not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST", (), "there is nothing to evaluate on", "Name at least one set.")
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
            _check_ids(name, metadata.json_file, content)
            in_data = len(content["categories"])
            if key == "DATASETS.TRAIN":
                _check_boxes(name, metadata.json_file, content)
                _check_masks(cfg, name, metadata.json_file, content)
        else:  # a set of millions of boxes is not read twice; its classes are known where it says so
            in_data = len(metadata.get("thing_classes") or ())
        _check_class_count(model or cfg, key, name, in_data)


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
    if not isinstance(content, dict) or not all(
        isinstance(content.get(e), list) and all(isinstance(x, dict) for x in content[e]) for e in entries
    ):
        raise ConfigError(REGISTER_KEY, name, f"{path} is not in COCO format", remedy)
    return content


def _check_ids(name: str, path: str, content: dict[str, Any]) -> None:
    """That every image has a size, and every annotation an image and a category of the file."""
    categories, images = ({x.get("id") for x in content[e]} for e in ("categories", "images"))
    remedy = "Correct the file: Detectron2 would stop on it."
    for image in content["images"]:
        if not all(key in image for key in ("id", "file_name", "height", "width")):
            problem = f"in {path} an image lacks id, file_name, height or width: {image}"
            raise ConfigError(REGISTER_KEY, name, problem, remedy)
    for annotation in content["annotations"]:
        if annotation.get("category_id") not in categories or annotation.get("image_id") not in images:
            problem = f"in {path} the annotation {annotation.get('id')} is of an unknown image or category"
            raise ConfigError(REGISTER_KEY, name, problem, remedy)


def _check_boxes(name: str, path: str, content: dict[str, Any]) -> None:
    if not any("bbox" in a and not a.get("iscrowd", 0) for a in content["annotations"]):
        raise ConfigError(
            "DATASETS.TRAIN",
            name,
            f"{path} holds no boxes to train on",
            "Give a file whose annotations have a bbox and are not all crowds.",
        )


def _check_masks(cfg: CfgNode, name: str, path: str, content: dict[str, Any]) -> None:
    """That masks are read in the format in which the file has them."""
    if not cfg.MODEL.MASK_ON or cfg.INPUT.MASK_FORMAT != "polygon":
        return
    if any(
        isinstance(a.get("segmentation"), dict) and not a.get("iscrowd", 0) for a in content["annotations"]
    ):
        raise ConfigError(
            "INPUT.MASK_FORMAT",
            cfg.INPUT.MASK_FORMAT,
            f"{path} of {name!r} has masks as run lengths, which Detectron2 cannot turn into polygons",
            'Set it to "bitmask".',
        )


def _check_class_count(cfg: CfgNode, key: str, name: str, in_data: int) -> None:
    class_key, count = _class_count(cfg)
    # COCO evaluation also fails on predictions of classes that the data has not.
    if count is not None and (in_data > count or (key == "DATASETS.TEST" and 0 < in_data < count)):
        problem = f"the data set {name!r} of {key} has {in_data} classes"
        remedy = f"Set {class_key} {in_data}, or use data with the model's classes."
        raise ConfigError(class_key, count, problem, remedy)


def _class_count(cfg: CfgNode) -> tuple[str, int | None]:
    """The key that says how many classes the model has, and what it says; None where that is not known."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture == DISTILLER:
        source = lazy_student(cfg)
        if source is not None:
            lazy = load_lazy(*source, "DISTILL.STUDENT_ARCHITECTURE", "DISTILL.STUDENT_OPTS")
            return "DISTILL.STUDENT_OPTS model.num_classes", num_classes(lazy)
        architecture = cfg.DISTILL.STUDENT_ARCHITECTURE
    class_key = _CLASS_COUNT_KEYS.get(architecture, "")
    node: Any = cfg if class_key else None
    for part in filter(None, class_key.split(".")):
        node = node[part]
    return class_key, node
