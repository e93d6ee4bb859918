"""Registering COCO-format data sets from the config, and checking data before a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager
from PIL import Image

from .config import DISTILLER
from .errors import ConfigError
from .lazy import lazy_student, load_lazy, num_classes

REGISTER_KEY = "DATASETS.REGISTER"
MOST_IMAGES = 200  # of a set, whose files are looked at before a run
_ORIENTATION = 0x0112  # the EXIF tag
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
    """Check the data sets that a run will use, as far as can be done in seconds.

    Of the sets of `DATASETS.REGISTER` the annotation file is read, and the headers, no pixels, of up to
    `MOST_IMAGES` images at equal distances in it. Of others it is seen that the files are there.

    Args:
        cfg: a config whose `DATASETS.REGISTER` has been registered.
        training: whether DATASETS.TRAIN is used, beside DATASETS.TEST.
        model: the config of the model that predicts, where it is not `cfg`.

    Raises:
        ConfigError: a set is not registered, lacks its files, is not COCO format, has images of another
            size than it says, no boxes to train on, more classes than the model, or others than the
            first set.
    """
    registered = {entry[0] for entry in cfg.DATASETS.REGISTER}
    if training and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN", (), "no training set is named", "Name at least one.")
    if not training and not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST", (), "there is nothing to evaluate on", "Name at least one set.")
    uses = [("DATASETS.TRAIN", name) for name in (cfg.DATASETS.TRAIN if training else ())]
    uses += [("DATASETS.TEST", name) for name in cfg.DATASETS.TEST]
    first: tuple[str, Sequence[str]] = ("", ())
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
            _check_annotations(key, name, metadata.json_file, content)
            classes = [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]
            if key == "DATASETS.TRAIN":
                _check_boxes(name, metadata.json_file, content)
                _check_masks(cfg, name, metadata.json_file, content)
            _check_images(name, metadata, content["images"])
        else:  # a set of millions of boxes is not read twice; its classes are known where it says so
            classes = list(metadata.get("thing_classes") or ())
        _check_class_count(model or cfg, key, name, len(classes))
        first = first if first[1] else (name, classes)
        _check_same_classes(key, name, classes, *first)


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
    """That categories and images are described, and every annotation is of one of each."""
    categories, images = ({x.get("id") for x in content[e]} for e in ("categories", "images"))
    remedy = "Correct the file: Detectron2 would stop on it."
    for category in content["categories"]:
        if not all(key in category for key in ("id", "name")):
            problem = f"in {path} a category lacks id or name: {category}"
            raise ConfigError(REGISTER_KEY, name, problem, remedy)
    for image in content["images"]:
        if not all(key in image for key in ("id", "file_name", "height", "width")):
            problem = f"in {path} an image lacks id, file_name, height or width: {image}"
            raise ConfigError(REGISTER_KEY, name, problem, remedy)
    for annotation in content["annotations"]:
        if annotation.get("category_id") not in categories or annotation.get("image_id") not in images:
            problem = f"in {path} the annotation {annotation.get('id')} is of an unknown image or category"
            raise ConfigError(REGISTER_KEY, name, problem, remedy)


def _check_annotations(key: str, name: str, path: str, content: dict[str, Any]) -> None:
    """That annotations have what the data loader and, of a test set, COCO evaluation take for granted."""
    needed = ("id", "bbox", "area", "iscrowd") if key == "DATASETS.TEST" else ("id", "bbox")
    seen = set()
    for annotation in content["annotations"]:
        problem = ""
        box, lacking = annotation.get("bbox"), [entry for entry in needed if entry not in annotation]
        if lacking:
            problem = f"lacks {' and '.join(lacking)}"
        elif not (isinstance(box, list) and len(box) == 4 and all(isinstance(x, (int, float)) for x in box)):
            problem = f"has the bbox {box}"
        elif annotation.get("ignore"):
            problem = "is marked 'ignore', which Detectron2 does not know"
        elif annotation["id"] in seen:
            problem = "has the id of another one"
        if problem:
            raise ConfigError(
                REGISTER_KEY,
                name,
                f"in {path} the annotation {annotation.get('id')} {problem}",
                "Give every annotation an id of its own and a bbox [x, y, width, height] and, for COCO "
                "evaluation, its area in pixels and iscrowd, 1 for crowds and 0 for all others.",
            )
        seen.add(annotation["id"])


def _check_images(name: str, metadata: Any, images: Sequence[dict[str, Any]]) -> None:
    """That image files are there, can be read, and are as large as described, at up to MOST_IMAGES."""
    for image in images[:: max(math.ceil(len(images) / MOST_IMAGES), 1)]:
        path = os.path.join(metadata.image_root, image["file_name"])
        described = (image["width"], image["height"])
        remedy = f"Correct {metadata.json_file}, or the folder of its images."
        try:
            with PathManager.open(path, "rb") as f, Image.open(f) as opened:
                size, mode = _upright_size(opened), opened.mode
        except FileNotFoundError as error:
            raise ConfigError(REGISTER_KEY, name, f"its image {path} does not exist", remedy) from error
        except (OSError, Image.DecompressionBombError) as error:
            problem = f"its image {path} cannot be opened ({type(error).__name__})"
            remedy = "Replace it, or take it out of the set."
            raise ConfigError(REGISTER_KEY, name, problem, remedy) from error
        if size != described:
            problem = (
                f"its image {path} is {size[0]} x {size[1]} pixels once its EXIF orientation is applied, and "
                f"{metadata.json_file} says {described[0]} x {described[1]}"
            )
            remedy = (
                "Correct width and height there; or, if its boxes are those of the picture as it is stored, "
                "take the orientation out of the image file."
            )
            raise ConfigError(REGISTER_KEY, name, problem, remedy)
        if mode in ("I", "F") or mode.startswith("I;16"):
            problem = f"its image {path} has more than 8 bits ({mode}), and anything above 255 becomes white"
            raise ConfigError(REGISTER_KEY, name, problem, "Convert such images to 8 bits.")


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) once the picture is turned as Detectron2 turns it, from the header alone."""
    if image.format == "PNG" and "exif" not in image.info:
        return image.size  # Pillow would decode all of it to look for EXIF data behind the pixels
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # whatever broken EXIF data leads to: Detectron2, too, takes it for none
        orientation = None
    return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size


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


def _check_same_classes(
    key: str, name: str, classes: Sequence[str], first: str, first_classes: Sequence[str]
) -> None:
    for number, (here, there) in enumerate(zip(classes, first_classes), start=1):
        if here != there:
            raise ConfigError(
                key,
                name,
                f"its class {number}, by the order of ids, is {here!r}, and that of {first!r} is {there!r}",
                "Give all sets of a run the same categories with the same ids.",
            )


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
