"""Images without labels: folders of images, the records of `DATASETS.UNLABELED`, and their checks."""

from __future__ import annotations

import json
import os
from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from mgd_det.errors import ConfigError

from .coco_checks import REGISTER_KEY, JsonObject, depth_problem, look_at_images

KEY = "DATASETS.UNLABELED"
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def register_folder(name: str, folder: str) -> None:
    """Register the images in a folder and its sub-folders as a data set without annotations."""
    DatasetCatalog.register(name, partial(_in_folder, folder))
    MetadataCatalog.get(name).set(json_file="", image_root=folder)


def _in_folder(folder: str) -> list[JsonObject]:
    """Returns a record for each image in a folder and its sub-folders, ordered by path."""
    names = [
        os.path.relpath(os.path.join(parent, file), folder)
        for parent, _, files in os.walk(folder, followlinks=True)
        for file in files
        if file.lower().endswith(SUFFIXES)
    ]
    return [{"file_name": os.path.join(folder, name), "image_id": name} for name in sorted(names)]


def unlabeled_records(name: str) -> list[JsonObject]:
    """Returns the images of a set, whose annotations are not looked at.

    Args:
        name: of a set in Detectron2's catalog.

    Returns:
        For each image its file_name, image_id and, if they are known, width and height.

    Raises:
        ConfigError: there is no such set, it has no images, or its annotation file is no JSON with a list of
            images.
    """
    if name not in DatasetCatalog:
        problem = "no data set of that name is registered"
        remedy = f"List it in {REGISTER_KEY}, or register it with Detectron2 before."
        raise ConfigError(KEY, name, problem, remedy)
    metadata = MetadataCatalog.get(name)
    path, root = metadata.get("json_file"), metadata.get("image_root")
    if path and root is not None:
        records = [
            {**x, "file_name": os.path.join(root, x["file_name"]), "image_id": x.get("id")}
            for x in _images_of(name, path)
        ]
    else:
        records = DatasetCatalog.get(name)
    if not records:
        problem = f"there are no images in {root or path or name}"
        raise ConfigError(KEY, name, problem, f"Name a folder with files such as {', '.join(SUFFIXES)}.")
    keep = ("file_name", "image_id", "width", "height")
    return [{key: record[key] for key in keep if key in record} for record in records]


def _images_of(name: str, path: str) -> list[JsonObject]:
    remedy = 'Give a file whose entry "images" lists file names, or "" and a folder of images.'
    try:
        with PathManager.open(path) as f:
            images = json.load(f)["images"]
        if not all(isinstance(image["file_name"], str) for image in images):
            raise TypeError("a file_name is no text")
    except (ValueError, KeyError, TypeError) as error:
        problem = f"{path} lists no images ({type(error).__name__}: {error})"
        raise ConfigError(KEY, name, problem, remedy) from error
    return list(images)


def check_unlabeled(name: str) -> None:
    """Check a registered set of `DATASETS.UNLABELED`, and the headers of its images.

    Raises:
        ConfigError: it has no images, or one of them is missing or cannot be read.
    """
    records = unlabeled_records(name)
    look_at_images(name, records, partial(_file_error, name))


def _file_error(name: str, record: JsonObject) -> ConfigError | None:
    """Returns what is wrong with an image file, None if nothing is."""
    path = record["file_name"]
    try:
        with PathManager.open(path, "rb") as f, Image.open(f) as image:
            problem = depth_problem(image.mode)
    except FileNotFoundError:
        problem = "does not exist"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = f"cannot be opened ({type(error).__name__})"
    remedy = "Replace it, or take it out of the set."
    return ConfigError(REGISTER_KEY, name, f"its image {path} {problem}", remedy) if problem else None
