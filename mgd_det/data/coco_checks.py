"""Checks of a data set in COCO format for what would stop training or evaluation late."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.utils.file_io import PathManager
from PIL import Image

from mgd_det.errors import ConfigError

from .coco_schema import JsonObject, schema_problem

logger = logging.getLogger("detectron2." + __name__)

REGISTER_KEY = "DATASETS.REGISTER"
THREADS = 16  # in which image files are opened
SMALLEST_SIDE = 1e-5  # pixels; Detectron2 drops boxes that are no larger
_ORIENTATION = 0x0112  # the EXIF tag


def check_coco(cfg: CfgNode, key: str, name: str, metadata: Metadata, *, annotated: bool = True) -> list[str]:
    """Check an annotation file, and the headers of all its images.

    Args:
        cfg: the config of the run.
        key: "DATASETS.TRAIN" or "DATASETS.TEST", for which the set is used.
        name: the name of the set.
        metadata: its `json_file` and `image_root`.
        annotated: the file has to have annotations.

    Returns:
        Its classes in the order in which Detectron2 numbers them, that of their ids.

    Raises:
        ConfigError: it is not COCO format, has no images, or some of another size than it says, no boxes or
            masks to train on, or annotations that COCO evaluation cannot use.
    """
    path = metadata.json_file
    content = _read_coco(key, name, path, annotated=annotated)
    if not content["images"]:
        raise ConfigError(key, name, f"{path} lists no images", "Give a set that has some.")
    _check_ids(name, path, content)
    _check_annotations(key, name, path, content)
    if key == "DATASETS.TRAIN":
        _check_boxes(name, path, content)
        _check_masks(cfg, name, path, content)
        _check_usable(name, path, content)
    _check_images(name, metadata, content["images"])
    _warn_of_corners(path, content)
    return [c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])]


def _read_coco(key: str, name: str, path: str, *, annotated: bool) -> JsonObject:
    remedy = "Give a file with the COCO entries images, annotations and categories."
    try:
        with PathManager.open(path) as f:
            content = json.load(f)
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise ConfigError(REGISTER_KEY, name, f"{path} is not JSON ({error})", remedy) from error
    entries = ("images", "annotations", "categories")
    if isinstance(content, dict) and not annotated:
        content.setdefault("annotations", [])
    if not (isinstance(content, dict) and all(isinstance(content.get(entry), list) for entry in entries)):
        raise ConfigError(REGISTER_KEY, name, f"{path} is not in COCO format", remedy)
    problem = schema_problem(content, evaluated=key == "DATASETS.TEST")
    if problem:
        remedy = "Correct the file: Detectron2 or the evaluation would stop on it."
        raise ConfigError(REGISTER_KEY, name, f"in {path} {problem}", remedy)
    return content


def _check_ids(name: str, path: str, content: JsonObject) -> None:
    """Check that categories and images are described, and that every annotation is of one of each."""
    remedy = "Correct the file: Detectron2 would stop on it."
    entries = (
        ("categories", "a category", ("id", "name")),
        ("images", "an image", ("id", "file_name", "height", "width")),
    )
    for entry, one, needed in entries:
        for described in content[entry]:
            if not all(key in described for key in needed):
                *first, last = needed
                problem = f"in {path} {one} lacks {', '.join(first)} or {last}: {described}"
                raise ConfigError(REGISTER_KEY, name, problem, remedy)
        twice = [number for number, count in Counter(x["id"] for x in content[entry]).items() if count > 1]
        if twice:
            problem = f"in {path} several {entry} have the id {twice[0]}, of which Detectron2 would read one"
            raise ConfigError(REGISTER_KEY, name, problem, f"Give every one of the {entry} an id of its own.")
        if len({isinstance(x["id"], str) for x in content[entry]}) > 1:
            problem = f"in {path} the ids of some {entry} are numbers, and those of others texts"
            raise ConfigError(REGISTER_KEY, name, problem, remedy)
    names = Counter(category["name"] for category in content["categories"])
    if twice := [repeated for repeated, count in names.items() if count > 1]:
        problem = f"in {path} several categories have the name {twice[0]!r}, and AP is reported by name"
        raise ConfigError(REGISTER_KEY, name, problem, "Give every one of the categories a name of its own.")
    known = {
        "category_id": {category["id"] for category in content["categories"]},
        "image_id": {image["id"] for image in content["images"]},
    }
    for annotation in content["annotations"]:
        if any(annotation.get(key) not in ids for key, ids in known.items()):
            problem = f"in {path} the annotation {annotation.get('id')} is of an unknown image or category"
            raise ConfigError(REGISTER_KEY, name, problem, remedy)


def _check_annotations(key: str, name: str, path: str, content: JsonObject) -> None:
    """Check that annotations have what the data loader needs and, in a test set, COCO evaluation."""
    needed = ("id", "bbox", "area", "iscrowd") if key == "DATASETS.TEST" else ("id", "bbox")
    seen = set()
    for annotation in content["annotations"]:
        problem = ""
        box, lacking = annotation.get("bbox"), [entry for entry in needed if entry not in annotation]
        if lacking:
            problem = f"lacks {' and '.join(lacking)}"
        elif not _is_box(box):
            problem = f"has the bbox {box}"
        elif not math.isfinite(annotation.get("area", 0)):
            problem = f"has the area {annotation['area']}"
        elif annotation["id"] == 0 and key == "DATASETS.TEST":
            problem = "has an id that COCO evaluation takes for none: its object would never be found"
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


def _is_box(box: Sequence[float]) -> bool:
    return all(map(math.isfinite, box)) and box[2] >= 0 and box[3] >= 0


def _check_images(name: str, metadata: Metadata, images: Sequence[JsonObject]) -> None:
    """Check that every image file exists, can be opened and has the described size; no pixels are read."""
    look_at_images(name, images, partial(_image_error, name, metadata))


def look_at_images(
    name: str, images: Sequence[JsonObject], error_of: Callable[[JsonObject], ConfigError | None]
) -> None:
    """Raise the first error that a function returns for the images of a set; it runs in several threads."""
    start = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:  # which wait for the disk or the network
        for error in pool.map(error_of, images):
            if error:
                pool.shutdown(cancel_futures=True)
                raise error
    logger.info("looked at %d images of %s in %.1f s", len(images), name, time.perf_counter() - start)


def _image_error(name: str, metadata: Metadata, image: JsonObject) -> ConfigError | None:
    """Returns what is wrong with an image file, None if nothing is."""
    path = os.path.join(metadata.image_root, image["file_name"])
    described = (image["width"], image["height"])
    remedy = f"Correct {metadata.json_file}, or the folder of its images."
    try:
        with PathManager.open(path, "rb") as f, Image.open(f) as opened:
            size, stored, mode = _upright_size(opened), opened.size, opened.mode
    except FileNotFoundError:
        return ConfigError(REGISTER_KEY, name, f"its image {path} does not exist", remedy)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"its image {path} cannot be opened ({type(error).__name__})"
        return ConfigError(REGISTER_KEY, name, problem, "Replace it, or take it out of the set.")
    if size != described:
        turned = size != stored
        problem = (
            f"its image {path} is {size[0]} x {size[1]} pixels"
            f"{' once its EXIF orientation is applied' if turned else ''}, and {metadata.json_file} says "
            f"{described[0]} x {described[1]}"
        )
        remedy = "Correct width and height there."
        if turned:
            remedy = (
                "Correct width and height there; or, if its boxes are those of the picture as it is "
                "stored, take the orientation out of the image file."
            )
        return ConfigError(REGISTER_KEY, name, problem, remedy)
    if depth := depth_problem(mode):
        problem = f"its image {path} {depth}"
        return ConfigError(REGISTER_KEY, name, problem, "Convert such images to 8 bits.")
    return None


def depth_problem(mode: str) -> str:
    """Returns what is wrong with the bits of an image of one of Pillow's modes, "" if nothing is."""
    if mode in ("I", "F") or mode.startswith("I;16"):
        return f"has more than 8 bits ({mode}), and anything above 255 becomes white"
    return ""


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Returns (width, height) of the picture as Detectron2 turns it, from the header alone."""
    if image.format == "PNG" and "exif" not in image.info:
        return image.size  # Pillow would decode all of it to look for EXIF data behind the pixels
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # Detectron2, too, ignores EXIF data that is broken in whatever way
        orientation = None
    return image.size[::-1] if orientation in (5, 6, 7, 8) else image.size


def _check_boxes(name: str, path: str, content: JsonObject) -> None:
    boxes = [a for a in content["annotations"] if "bbox" in a and not a.get("iscrowd", 0)]
    if not boxes:
        raise ConfigError(
            "DATASETS.TRAIN",
            name,
            f"{path} holds no boxes to train on",
            "Give a file whose annotations have a bbox and are not all crowds.",
        )
    if not any(map(_is_read, boxes)):
        raise ConfigError(
            "DATASETS.TRAIN",
            name,
            f"in {path} no segmentation is a valid polygon, and Detectron2 leaves out such annotations, "
            "boxes and all",
            "Give polygons of at least 3 points, or take the entry 'segmentation' out.",
        )


def _is_read(annotation: JsonObject) -> bool:
    """Returns True if Detectron2 keeps an annotation: of its polygons one must have at least 3 points."""
    polygons = annotation.get("segmentation")
    if not polygons or isinstance(polygons, dict):
        return True
    return any(isinstance(p, list) and len(p) % 2 == 0 and len(p) >= 6 for p in polygons)


def _check_usable(name: str, path: str, content: JsonObject) -> None:
    """Check that there are boxes that have an area inside their images, and warn of those that have none."""
    sizes = {x["id"]: (x["width"], x["height"]) for x in content["images"]}
    kept = [a for a in content["annotations"] if not a.get("iscrowd", 0) and _is_read(a)]
    boxes = np.array([a["bbox"] for a in kept], dtype=float)
    limits = np.array([sizes[a["image_id"]] for a in kept], dtype=float)
    corners = np.stack([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]])
    low, high = np.clip(corners, 0, limits)
    unusable = np.flatnonzero((high - low <= SMALLEST_SIDE).any(1))
    if len(unusable) == len(kept):
        raise ConfigError(
            "DATASETS.TRAIN",
            name,
            f"in {path} no box has an area inside its image",
            "Boxes are [x, y, width, height] in pixels of the image.",
        )
    if len(unusable):
        logger.warning(
            "%d of the %d boxes in %s have no area inside their images and teach nothing, that of annotation "
            "%s for one",
            len(unusable),
            len(kept),
            path,
            kept[unusable[0]]["id"],
        )


def _check_masks(cfg: CfgNode, name: str, path: str, content: JsonObject) -> None:
    """Check that there are masks if they are needed, in the format that the config says."""
    if not cfg.MODEL.MASK_ON:
        return
    without = [a["id"] for a in content["annotations"] if not (a.get("segmentation") or a.get("iscrowd", 0))]
    if without:
        problem = f"in {path} of {name!r} the annotation {without[0]} has no segmentation"
        raise ConfigError("MODEL.MASK_ON", True, problem, "Give masks, or a detector that needs none.")
    if cfg.INPUT.MASK_FORMAT != "polygon":
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


def _warn_of_corners(path: str, content: JsonObject) -> None:
    """Warn if many boxes leave their images, as boxes that were written as [x0, y0, x1, y1] do."""
    sizes = {x["id"]: (x["width"], x["height"]) for x in content["images"]}
    boxes = [(a["bbox"], sizes[a["image_id"]]) for a in content["annotations"]]
    over = sum(x + w > width + 1 or y + h > height + 1 for (x, y, w, h), (width, height) in boxes)
    if 10 * over > len(boxes):
        logger.warning(
            "%d of the %d boxes in %s reach over the edge of their image: COCO's are [x, y, width, height]; "
            "are these [x0, y0, x1, y1]?",
            over,
            len(boxes),
            path,
        )
