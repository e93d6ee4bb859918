#!/usr/bin/env python
"""Draw ground truth and the detections of several models side by side, from COCO-format files."""

from __future__ import annotations

import argparse
import json
from itertools import cycle
from pathlib import Path
from typing import Any

import _checkout
import matplotlib
import matplotlib.pyplot as plt
from commandline import argument_parser
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

Entry = dict[str, Any]  # of a file in COCO format

EXAMPLES = """
examples:
  tools/draw_detections.py --annotations datasets/demo/annotations/val.json --images datasets/demo/val \\
      --results teacher=output/demo/teacher/inference/coco_instances_results.json \\
                student=output/demo/student/inference/coco_instances_results.json --out detections.png
  tools/draw_detections.py --annotations mine/val.json --images mine/images --out boxes.png
      (ground truth alone)
"""


def main() -> None:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument("--annotations", type=Path, required=True, help="COCO-format ground truth")
    parser.add_argument("--images", type=Path, required=True, help="folder of its images")
    parser.add_argument(
        "--results",
        nargs="+",
        metavar="TITLE=FILE",
        default=[],
        help="detections that evaluations have written, each with the title of its row",
    )
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument(
        "--score", type=float, default=0.3, help="lowest score of a detection that is drawn (default: 0.3)"
    )
    parser.add_argument("--count", type=int, default=6, help="number of images that are drawn (default: 6)")
    args = parser.parse_args()

    if args.count < 1:
        parser.error(f"--count {args.count}: give at least 1")
    truth = read(parser, "--annotations", args.annotations)
    if not isinstance(truth, dict) or not {"images", "annotations", "categories"} <= set(truth):
        parser.error(f"--annotations {args.annotations}: no images, annotations and categories in it")
    if not args.images.is_dir():
        parser.error(f"--images {args.images}: there is no such folder")
    try:
        objects = [a for a in truth["annotations"] if not a.get("iscrowd", 0)]
        rows: dict[str, list[Entry]] = {"ground truth": objects}
        for entry in args.results:
            title, equals, file = entry.partition("=")
            if not equals:
                parser.error(f"--results {entry}: write TITLE=FILE")
            rows[title] = [d for d in read(parser, "--results", Path(file)) if d["score"] >= args.score]
        # Spread over the set, so that the choice is nobody's.
        images = truth["images"][:: max(len(truth["images"]) // args.count, 1)][: args.count]
        if not images:
            parser.error(f"--annotations {args.annotations}: no image in it")
        draw(rows, images, {c["id"]: c["name"] for c in truth["categories"]}, args.images, args.out)
    except (KeyError, TypeError, AttributeError) as error:
        parser.error(f"not detections in COCO format ({type(error).__name__}: {error})")
    except (OSError, ValueError) as error:  # of pictures, which name their file
        parser.error(str(error))


def read(parser: argparse.ArgumentParser, flag: str, path: Path) -> Any:
    """Returns the content of a json file; ends with a line if there is none."""
    if not path.is_file():
        parser.error(f"{flag} {path}: there is no such file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        parser.error(f"{flag} {path}: is not JSON ({error})")


def draw(
    rows: dict[str, list[Entry]],
    images: list[Entry],
    categories: dict[int, str],
    folder: Path,
    out: Path,
) -> None:
    """One row a source of boxes, one column an image."""
    matplotlib.use("Agg")
    colours = dict(zip(categories, cycle(plt.get_cmap("tab10").colors)))  # type: ignore[attr-defined]
    side = 2.0 if len(rows) > 1 else 5.0  # inches; ground truth alone is looked at for its details
    size = (side * len(images), side * len(rows))
    figure, axes = plt.subplots(len(rows), len(images), figsize=size, squeeze=False)
    for axis_row, (title, boxes) in zip(axes, rows.items()):
        for axis, image in zip(axis_row, images):
            upright = ImageOps.exif_transpose(Image.open(folder / image["file_name"]))
            axis.imshow(upright.convert("RGB"))
            axis.set(xticks=[], yticks=[])
            for box in (b for b in boxes if b["image_id"] == image["id"]):
                draw_box(axis, box, categories, colours)
        axis_row[0].set_ylabel(title)
    figure.tight_layout(pad=0.3)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=85, pil_kwargs={"optimize": True})
    plt.close(figure)


def draw_box(
    axis: Axes, box: Entry, categories: dict[int, str], colours: dict[int, tuple[float, ...]]
) -> None:
    x, y, w, h = box["bbox"]
    colour = colours[box["category_id"]]
    axis.add_patch(Rectangle((x, y), w, h, fill=False, edgecolor=colour, linewidth=1.5))
    label = categories[box["category_id"]]
    if "score" in box:
        label += f" {100 * box['score']:.0f}"
    background = {"facecolor": colour, "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
    axis.text(x, y, label, fontsize=6, color="white", verticalalignment="bottom", bbox=background)


if __name__ == "__main__":
    main()
