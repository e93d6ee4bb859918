#!/usr/bin/env python3
"""Make an awkward copy of a set of tools/make_demo_data.py: the same scenes, kept as data often is.

A quarter of the images each are colour PNG, grey PNG (mode L), CMYK JPEG, and JPEG that is stored turned
or mirrored, with the EXIF orientation that puts it upright; width and height are those of the upright
picture, as Detectron2 expects. Some images have no box, some annotations are crowds. Category ids have
gaps, image ids are large, nothing is in order, and file names have folders, spaces and letters beyond
ASCII.

Layout: ``OUT/{train,val,test}/**/*.{png,jpg}``, ``OUT/annotations/{train,val,test}.json`` and
``OUT/recipe.json``, the parameters that made the set.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from make_demo_data import SPLITS, DataError, Entry, encode_rle, load_sources, photo_crop, run
from make_demo_data import TOOL as DEMO_TOOL
from PIL import ExifTags, Image
from pycocotools import mask as mask_utils

# Both go into recipe.json. Raise the format whenever the same parameters give other bytes.
TOOL, FORMAT = "make_odd_data", 1

KINDS = ("colour", "grey", "CMYK", "turned")
EMPTY_SHARE = 0.1  # images without a box, beside those of the set
CROWD_SHARE = 0.08  # of the annotations

# EXIF orientation -> what makes the picture that is stored with it out of the upright one. Those of a camera
# held on its side come first: a small set may not get to the others.
STORED = {
    6: Image.Transpose.ROTATE_90,
    8: Image.Transpose.ROTATE_270,
    3: Image.Transpose.ROTATE_180,
    5: Image.Transpose.TRANSPOSE,
    7: Image.Transpose.TRANSVERSE,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
}
T = TypeVar("T")
JPEG: dict[str, Any] = {"quality": 95, "subsampling": 0}  # hardly any loss: that is not what is odd here

NAMES = ("{}", "camera 1/{} (copy)", "Köln/Straße Nr. {}", "東京/写真 {}")
FIRST_ID = 5_000_000_000  # 33 bits: ids made of time stamps or hashes are as long
CATEGORY_IDS = np.arange(2, 91)  # COCO's own go up to 90


def pictures(
    rng: np.random.Generator, data: Path, split: str, listed: Sequence[Entry], sides: Sequence[int]
) -> Iterator[tuple[Entry, Image.Image]]:
    """The images of a split, each with its entry; then windows of its photographs, with nothing to detect."""
    for entry in listed:
        with Image.open(data / split / entry["file_name"]) as picture:
            yield entry, picture
    sources = load_sources(split)
    for number in range(round(EMPTY_SHARE * len(listed))):
        height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
        window = photo_crop(rng, sources, (height, width)).astype(np.uint8)
        entry = {"id": len(listed) + number + 1, "width": width, "height": height, "license": 1}
        yield entry, Image.fromarray(window)


def store(picture: Image.Image, folder: Path, name: str, kind: str, orientations: Iterator[int]) -> str:
    """Write an upright RGB picture as one of `KINDS`, a turned one with the next of ``orientations``.

    Returns its file name, which starts at ``folder``.
    """
    file_name = name + (".png" if kind in ("colour", "grey") else ".jpg")
    path = folder / file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "turned":
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation = next(orientations)
        picture.transpose(STORED[orientation]).save(path, exif=exif, **JPEG)
    elif kind == "CMYK":
        picture.convert("CMYK").save(path, **JPEG)
    else:
        picture.convert("L" if kind == "grey" else "RGB").save(path)
    return file_name


def as_crowd(annotation: Entry, image: Entry) -> Entry:
    """The annotation as a crowd, whose mask COCO has as run lengths."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        polygons = mask_utils.frPyObjects(segmentation, image["height"], image["width"])
        segmentation = encode_rle(mask_utils.decode(mask_utils.merge(polygons)).astype(bool))
    return {**annotation, "segmentation": segmentation, "iscrowd": 1}


def shuffled(rng: np.random.Generator, entries: Sequence[T]) -> list[T]:
    return [entries[i] for i in rng.permutation(len(entries))]


def write_split(data: Path, root: Path, split: str, recipe: Entry) -> str:
    """Write the images and the annotation file of one split of ``data``; says what they hold."""
    coco = json.loads((data / "annotations" / f"{split}.json").read_text(encoding="utf-8"))
    rng = np.random.default_rng(recipe["seed"])  # the categories are the same in all splits
    old = [category["id"] for category in coco["categories"]]
    category_ids = dict(zip(old, rng.choice(CATEGORY_IDS, len(old), replace=False).tolist()))
    categories = [{**c, "id": category_ids[c["id"]]} for c in coco["categories"]]

    rng = np.random.default_rng([recipe["seed"], SPLITS.index(split)])
    count = len(coco["images"]) + round(EMPTY_SHARE * len(coco["images"]))
    kinds = shuffled(rng, [KINDS[i % len(KINDS)] for i in range(count)])
    numbers = shuffled(rng, range(10 * count))
    orientations = cycle(STORED)
    images: dict[int, Entry] = {}  # by their old ids
    drawn = pictures(rng, data, split, coco["images"], recipe["data"]["size"])
    for (entry, picture), kind, number in zip(drawn, kinds, numbers):
        name = NAMES[number % len(NAMES)].format(number)
        file_name = store(picture, root / split, name, kind, orientations)
        images[entry["id"]] = {**entry, "id": FIRST_ID + number, "file_name": file_name}

    annotations = shuffled(rng, coco["annotations"])
    crowds = round(CROWD_SHARE * len(annotations))
    for position, annotation in enumerate(annotations):
        image = images[annotation["image_id"]]
        changed = as_crowd(annotation, image) if position < crowds else annotation
        ids = {"image_id": image["id"], "category_id": category_ids[annotation["category_id"]]}
        annotations[position] = {**changed, "id": FIRST_ID + annotation["id"], **ids}
    odd = {
        **coco,
        "info": {"description": f"awkward demonstration set, {split} split", "version": str(FORMAT)},
        "categories": shuffled(rng, categories),
        "images": shuffled(rng, list(images.values())),
        "annotations": shuffled(rng, annotations),
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(odd), encoding="utf-8")
    empty = count - len(coco["images"])
    parts = [f"{number} {kind}" for kind, number in Counter(kinds).items()]
    return f"{split} {count} images ({', '.join(parts)}; {empty} without boxes), {crowds} crowds"


def get_recipe(args: argparse.Namespace) -> Entry:
    """Returns the parameters that determine every byte of the set. Raises DataError if they make none."""
    if args.seed < 0:
        raise DataError(f"--seed must be 0 or more, not {args.seed}")
    try:
        made_by = json.loads((args.data / "recipe.json").read_text(encoding="utf-8"))
        is_demo = made_by["tool"] == DEMO_TOOL
    except (OSError, ValueError, TypeError, KeyError):
        is_demo = False
    if not is_demo:
        raise DataError(
            f"--data {args.data} holds no set of tools/{DEMO_TOOL}.py: make one, and give its folder"
        )
    return {"tool": TOOL, "format": FORMAT, "seed": args.seed, "data": made_by}


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n"
        "  python tools/make_demo_data.py --out datasets/digits --objects digits\n"
        "  python tools/make_odd_data.py --data datasets/digits --out datasets/odd_digits\n"
        "  python tools/make_odd_data.py --data datasets/demo --out odd --seed 7 --force",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of a set that tools/make_demo_data.py has made"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random numbers, 0 or more (default: 0)"
    )
    parser.add_argument("--force", action="store_true", help="replace an awkward set that --out holds")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set unless it is there; returns the exit code."""
    parser = get_parser()
    args = parser.parse_args(argv)
    written = run(parser, args, get_recipe, partial(write_split, args.data))
    if written is not None:
        print("\n".join([f"{args.out}:", *written.values()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
