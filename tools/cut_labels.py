#!/usr/bin/env python
"""Split a COCO-format file into images that keep their labels and the rest, for training with few labels.

Which images keep them depends on their file names and the seed alone. A smaller share is part of a larger one
with the same seed. The rest keeps its annotations in its file; as DATASETS.UNLABELED they are never read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commandline import argument_parser, bad_input_in_one_line, output_folder, say

from mgd_det.data.coco_schema import schema_problem
from mgd_det.errors import ConfigError

EXAMPLES = """
examples:
  tools/cut_labels.py datasets/shapes/annotations/train.json --share 0.25
    (writes train_25_labelled.json and train_25_rest.json beside it)
  tools/cut_labels.py mine/train.json --share 0.1 --seed 7 --out few
"""

# Keys that every entry of these lists must have.
NEEDED = {"images": {"id", "file_name"}, "annotations": {"image_id"}}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument("annotations", type=Path, metavar="FILE.json", help="COCO-format file to split")
    parser.add_argument(
        "--share",
        type=float,
        required=True,
        help="share of the images that keep their labels, between 0 and 1",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of images (default: 0)")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="folder to write to (default: that of FILE.json)"
    )
    args = parser.parse_args(argv)
    with bad_input_in_one_line():
        cut(args)


def cut(args: argparse.Namespace) -> None:
    """Write both parts.

    Raises:
        ConfigError: the share is none, the file cannot be read, or nothing can be written there.
    """
    if not 0 < args.share < 1:
        raise ConfigError("--share", args.share, "not between 0 and 1", "Give one such as 0.25.")
    coco = read(args.annotations)
    folder = output_folder("--out", args.out or args.annotations.parent)
    labelled, rest = split(coco, args.share, args.seed)
    if not (labelled["images"] and rest["images"]):
        problem = f"of {len(coco['images'])} images leaves one of the parts empty"
        raise ConfigError("--share", args.share, problem, "Give another, such as 0.25.")
    for name, part in {"labelled": labelled, "rest": rest}.items():
        drawn = f"{100 * args.share:g}" + (f"_seed{args.seed}" if args.seed else "")
        path = folder / f"{args.annotations.stem}_{drawn}_{name}.json"
        path.write_text(json.dumps(part), encoding="utf-8")
        say(f"{path}: {len(part['images'])} images, {len(part['annotations'])} annotations")


def read(path: Path) -> dict[str, Any]:
    """Returns the content of a COCO-format file.

    Raises:
        ConfigError: it is none.
    """
    remedy = "Give a file with the COCO entries images, annotations and categories."
    try:
        coco = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("FILE.json", str(path), f"cannot be read ({error})", remedy) from error
    if problem := schema_problem(coco, evaluated=False):
        raise ConfigError("FILE.json", str(path), problem, remedy)
    for kind, keys in NEEDED.items():
        if not all(keys <= entry.keys() for entry in coco[kind]):
            problem = f"has {kind} without {' or '.join(sorted(keys))}"
            raise ConfigError("FILE.json", str(path), problem, remedy)
    for number, count in Counter(image["id"] for image in coco["images"]).items():
        if count > 1:
            problem = f"has {count} images with the id {number!r}"
            raise ConfigError("FILE.json", str(path), problem, "Give every image an id of its own.")
    return coco


def split(coco: dict[str, Any], share: float, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the part with `share` of the images, rounded, and the rest, each with its own annotations."""

    def place(image: dict[str, Any]) -> bytes:
        return hashlib.sha256(f"{seed}:{image['file_name']}".encode()).digest()

    ranked = sorted(coco["images"], key=place)
    kept = {image["id"] for image in ranked[: round(share * len(ranked))]}
    return _part(coco, kept), _part(coco, {image["id"] for image in ranked} - kept)


def _part(coco: dict[str, Any], ids: set[Any]) -> dict[str, Any]:
    """Returns the images with these ids and their annotations, in the order of the file."""
    return {
        **coco,
        "images": [image for image in coco["images"] if image["id"] in ids],
        "annotations": [x for x in coco["annotations"] if x["image_id"] in ids],
    }


if __name__ == "__main__":
    main()
