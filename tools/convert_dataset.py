#!/usr/bin/env python
"""Make a data set of the studies in COCO format from the files that its authors give.

bccd is github.com/Shenggan/BCCD_Dataset: ANNOTATIONS is its folder BCCD/Annotations of xml files, and IMAGES
BCCD/JPEGImages. Boxes without an area are left out.

animal_pose is Animal-Pose (Cao et al., ICCV 2019): ANNOTATIONS is its keypoints.json, and IMAGES its folder
of images. Those whose names do not begin with a year, as PASCAL VOC's do, are left out.

Images are made smaller, and divided into train, val and test by a hash of their names.

Layout: ``OUT/{train,val,test}/*.jpg``, ``OUT/annotations/{train,val,test}.json`` and ``OUT/recipe.json``, the
parameters that made the set.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import _checkout
from commandline import BAD_INPUT, argument_parser, say
from make_demo_data import Entry, run
from PIL import Image

# Both go into recipe.json. Raise the format whenever the same files give other bytes.
TOOL, FORMAT = "convert_dataset", 1

EXAMPLES = """
examples:
  tools/convert_dataset.py bccd BCCD/Annotations BCCD/JPEGImages --out datasets/bccd
  tools/convert_dataset.py animal_pose animalpose/keypoints.json animalpose/images --out datasets/animal_pose
"""

JPEG_QUALITY = 90
DECIMALS = 2  # of a box, in pixels
BOX_KEYS = ("xmin", "ymin", "xmax", "ymax")
VOC_NAME = re.compile(r"\d{4}_")


class Object(NamedTuple):
    """An object on an image as its authors give it."""

    category: str
    corners: Sequence[float]  # x0, y0, x1, y1 in pixels


Objects = dict[str, list[Object]]  # by the image's file name


class DataSet(NamedTuple):
    """The reader, the categories, the size and the split of one data set."""

    read: Callable[[Path], Objects]
    categories: Sequence[str]  # in the order of their ids, from 1
    longest_side: int  # of the images made, px
    hashed: Callable[[str], str]  # part of a file name that decides about its split


def read_bccd(folder: Path) -> Objects:
    """Returns the objects in a folder of Pascal VOC's xml files."""
    found: Objects = {}
    for path in sorted(folder.glob("*.xml")):
        objects = []
        for element in ElementTree.parse(path).getroot().iter("object"):
            corners = [float(element.findtext(f"bndbox/{key}", "")) for key in BOX_KEYS]
            objects.append(Object(element.findtext("name", ""), corners))
        found[f"{path.stem}.jpg"] = objects
    return found


def read_animal_pose(file: Path) -> Objects:
    """Returns the animals on the images of PASCAL VOC in `keypoints.json`."""
    content = json.loads(file.read_text(encoding="utf-8"))
    names = content["images"]  # by their ids, as text
    categories = {category["id"]: category["name"] for category in content["categories"]}
    found: Objects = {name: [] for name in sorted(names.values()) if VOC_NAME.match(name)}
    for annotation in content["annotations"]:
        name = names[str(annotation["image_id"])]
        if name in found:
            found[name].append(Object(categories[annotation["category_id"]], annotation["bbox"]))
    return found


DATA_SETS = {
    "bccd": DataSet(read_bccd, ("Platelets", "RBC", "WBC"), 320, lambda name: Path(name).stem),
    "animal_pose": DataSet(read_animal_pose, ("dog", "cat", "sheep", "horse", "cow"), 224, lambda name: name),
}


def read_known(data: DataSet, annotations: Path) -> Objects:
    """Returns the objects of a data set by the file names of their images.

    Raises:
        ValueError: there are no images, or objects of other categories.
    """
    found = data.read(annotations)
    if not found:
        raise ValueError("there is no image in them")
    unknown = {o.category for objects in found.values() for o in objects} - set(data.categories)
    if unknown:
        raise ValueError(f"objects of the unknown categories {sorted(unknown)}")
    return found


def split_of(text: str) -> str:
    """Returns the split of an image: of ten, on average two are in test, one in val and seven in train."""
    remainder = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10
    return "test" if remainder < 2 else "val" if remainder == 2 else "train"


def scaled_box(corners: Sequence[float], scale: Sequence[float]) -> list[float]:
    """Returns the box [x, y, width, height] of two corners on an image scaled by (horizontal, vertical)."""
    x0, y0, x1, y1 = corners
    across, down = scale
    box = [x0 * across, y0 * down, (x1 - x0) * across, (y1 - y0) * down]
    return [round(number, DECIMALS) for number in box]


def shrink(source: Path, target: Path, longest_side: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """Write an image in its new size as JPEG; returns the size (width, height) and the scale of each."""
    with Image.open(source) as image:
        factor = longest_side / max(image.size)
        width, height = (max(round(side * factor), 1) for side in image.size)
        scale = width / image.width, height / image.height
        smaller = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    smaller.save(target, "JPEG", quality=JPEG_QUALITY)
    return (width, height), scale


def write_split(data: DataSet, found: Objects, folder: Path, root: Path, split: str, recipe: Entry) -> str:
    """Write the images and the annotation file of one split; says what they hold."""
    images: list[Entry] = []
    annotations: list[Entry] = []
    (root / split).mkdir()
    for name in (name for name in found if split_of(data.hashed(name)) == split):
        (width, height), scale = shrink(folder / name, root / split / name, data.longest_side)
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        for category, corners in found[name]:
            box = scaled_box(corners, scale)
            if box[2] > 0 and box[3] > 0:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": len(images),
                        "category_id": data.categories.index(category) + 1,
                        "bbox": box,
                        "area": round(box[2] * box[3], DECIMALS),
                        "iscrowd": 0,
                    }
                )
    coco = {
        "info": {"description": f"{recipe['data']}, {split} split", "version": str(FORMAT)},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for number, name in enumerate(data.categories, 1)],
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")
    return f"{split} {len(images)} images / {len(annotations)} boxes"


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the set unless it is there; returns the exit code."""
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "data", choices=list(DATA_SETS), metavar="NAME", help=f"data set to make: {' or '.join(DATA_SETS)}"
    )
    parser.add_argument(
        "annotations", type=Path, metavar="ANNOTATIONS", help="annotations as the authors publish them"
    )
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of the authors' images")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--force", action="store_true", help="replace a set of this tool that --out holds")
    args = parser.parse_args(arguments)
    data = DATA_SETS[args.data]
    try:
        found = read_known(data, args.annotations)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ElementTree.ParseError) as error:
        problem = f"not as the authors give them ({type(error).__name__}: {error})"
        parser.exit(BAD_INPUT, f"{parser.prog}: error: ANNOTATIONS {args.annotations}: {problem}\n")
    recipe = {"tool": TOOL, "format": FORMAT, "data": args.data}
    written = run(parser, args, lambda _: recipe, partial(write_split, data, found, args.images))
    if written is not None:
        say(f"{args.out}: {', '.join(written.values())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
