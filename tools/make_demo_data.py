#!/usr/bin/env python3
"""Make a small COCO-format detection set from what scikit-learn ships; nothing is downloaded.

Backgrounds are crops of its two real photographs. Objects are drawn shapes, its real 8x8
handwritten digits, or both, rotated, scaled, coloured, partly hidden by one another, by
unlabelled clutter or by the border. Every annotation describes the visible part of its object.

Layout: ``OUT/{train,val,test}/000001.png``, ``OUT/annotations/{train,val,test}.json`` and
``OUT/recipe.json``, the parameters that made the set.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

# Both go into recipe.json. Raise the format whenever the same parameters give other bytes.
TOOL, FORMAT = "make_demo_data", 1

SPLITS = ("train", "val", "test")
SHAPES = ("disc", "square", "triangle", "star", "ring", "cross")
DIGITS = tuple(f"digit {value}" for value in range(10))
CATEGORIES = {"shapes": SHAPES, "digits": DIGITS, "both": SHAPES + DIGITS}
MIN_SIDE, MAX_SIDE = 96, 160  # px, of an image

# The photographs are 640 px wide: each split owns a band of columns, the same in both of them.
BANDS = {"train": (160, 480), "val": (0, 160), "test": (480, 640)}
# Consecutive digits come from the same writer: contiguous ranges keep most writers apart, too.
DIGIT_RANGES = {"train": (0, 1097), "val": (1097, 1447), "test": (1447, 1797)}
PHOTO_NAMES = ("china.jpg", "flower.jpg")
LICENSE = {
    "id": 1,
    "name": "Creative Commons Attribution 2.0 (photographs shipped with scikit-learn)",
    "url": "https://creativecommons.org/licenses/by/2.0/",
}

OBJECTS_PER_IMAGE = (1, 5)
CLUTTER_PER_IMAGE = (2, 8)
OBJECT_DIAMETER = (0.2, 0.6)  # of the image's shorter side
MIN_VISIBLE = 0.7  # of an object's own area; a layer that would leave less is not drawn
PLACEMENT_TRIES = 20
SUPERSAMPLING = 8  # sub-pixels per pixel and axis, for anti-aliased edges
INK_LEVEL = 0.55  # of a digit's darkest ink: where its outline lies


Entry = dict[str, Any]  # of a file in COCO format, or of the record of how the data was made


class DataError(Exception):
    """Something the caller can put right; its text is the whole message."""


@dataclass(frozen=True)
class Sources:
    """The sources of one split: photographs (H, W, 3) uint8, digits (N, 8, 8) in 0..16."""

    photos: list[np.ndarray]
    digits: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Sprite:
    """A silhouette: coverage (h, w) in 0..1 and, if one polygon tells it all, outline (n, 2) px."""

    coverage: np.ndarray
    outline: np.ndarray | None


@dataclass
class DrawnObject:
    """An object on the canvas: 0-based category, visible mask (H, W), and the area (px) and
    outline (n, 2) that it would have if nothing hid any of it."""

    category: int
    mask: np.ndarray
    area: int
    outline: np.ndarray | None


def load_sources(split: str) -> Sources:
    """The part of scikit-learn's photographs and digits that belongs to ``split`` alone."""
    from sklearn.datasets import load_digits, load_sample_image  # slow: not for --help

    left, right = BANDS[split]
    first, end = DIGIT_RANGES[split]
    digits = load_digits()
    return Sources(
        [load_sample_image(name)[:, left:right] for name in PHOTO_NAMES],
        digits.images[first:end],
        digits.target[first:end],
    )


def star(points: int, inner: float) -> np.ndarray:
    """Outline (2 * points, 2) of a star of radius 1; ``inner`` is the radius of its notches."""
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def regular(sides: int) -> np.ndarray:
    """Outline (sides, 2) of a regular polygon of radius 1."""
    return star(sides, 1.0)[::2]


def cross(arm: float) -> np.ndarray:
    """Outline (12, 2) of a plus sign of half-length 1 whose arms are ``2 * arm`` wide."""
    corner = np.array([(1, -arm), (1, arm), (arm, arm)])
    turn = np.array([(0, 1), (-1, 0)])
    return np.concatenate([corner @ np.linalg.matrix_power(turn, k) for k in range(4)])


# Rings of points in units of the object's radius: the outline, then a hole if there is one.
SHAPE_RINGS = {
    "disc": [0.95 * regular(48)],
    "square": [1.1 * regular(4)],
    "triangle": [1.1 * regular(3)],
    "star": [1.1 * star(5, 0.42)],
    "ring": [regular(48), 0.55 * regular(48)],
    "cross": [cross(0.32)],
}


def render(rings: Sequence[np.ndarray]) -> Sprite:
    """Fill the first of ``rings`` (px) and cut the others out of it, on a canvas that just fits."""
    low = np.floor(rings[0].min(axis=0)) - 1
    width, height = (np.ceil(rings[0].max(axis=0)) + 1 - low).astype(int)
    canvas = Image.new("L", (SUPERSAMPLING * width, SUPERSAMPLING * height))
    draw = ImageDraw.Draw(canvas)
    for index, ring in enumerate(rings):
        # Pillow puts whole numbers at pixel centres, COCO at pixel corners.
        points = (ring - low) * SUPERSAMPLING - 0.5
        draw.polygon([(float(x), float(y)) for x, y in points], fill=0 if index else 255)
    coverage = np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float32) / 255
    return Sprite(coverage, rings[0] - low if len(rings) == 1 else None)


def shape_sprite(rng: np.random.Generator, rings: Sequence[np.ndarray], diameter: float) -> Sprite:
    """``rings`` slightly stretched, then turned by any angle."""
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.0)
    cos, sin = np.cos(angle), np.sin(angle)
    transform = diameter / 2 * np.array([(1, 0), (0, stretch)]) @ np.array([(cos, sin), (-sin, cos)])
    return render([ring @ transform + rng.uniform(0, 1, 2) for ring in rings])


def digit_sprite(rng: np.random.Generator, digit: np.ndarray, diameter: float) -> Sprite:
    """A handwritten digit (8, 8) in 0..16, enlarged with smooth edges and slightly turned."""
    # The margin keeps the corners of the turned grid, and strokes at its edge, inside.
    ink = Image.fromarray((np.pad(digit, 2) * 15).astype(np.uint8))
    scale, side = diameter / 8, round(diameter * 12 / 8)
    enlarged = ink.resize((side, side), Image.Resampling.BICUBIC)
    turned = enlarged.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC)
    level = np.asarray(turned, dtype=np.float32) / 240
    # From full ink to none takes about `scale` px: steepen that to an edge of one pixel.
    return Sprite(np.clip(0.5 + scale * (level - INK_LEVEL), 0, 1), None)


def object_sprite(rng: np.random.Generator, sources: Sources, name: str, diameter: float) -> Sprite:
    """A silhouette of category ``name``, about ``diameter`` px across."""
    if name in SHAPE_RINGS:
        return shape_sprite(rng, SHAPE_RINGS[name], diameter)
    index = rng.choice(np.flatnonzero(sources.labels == DIGITS.index(name)))
    return digit_sprite(rng, sources.digits[index], diameter)


def clutter_sprite(rng: np.random.Generator, short_side: int) -> Sprite:
    """The silhouette of a distractor: a stick or a wobbly blob, neither of them a category."""
    if rng.random() < 0.5:
        length, thickness = rng.uniform(0.2, 1.0) * short_side, rng.uniform(1.0, 3.0)
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        return shape_sprite(rng, [corners * (1, thickness / length)], length)
    angle, waves = np.arange(40) * np.pi / 20, np.array([[2], [3], [5]])
    wobble = rng.uniform(-0.7, 0.7, (3, 1)) / waves * np.sin(waves * angle + rng.uniform(0, 6, (3, 1)))
    radius = 0.7 + 0.5 * wobble.sum(axis=0)
    blob = regular(40) * radius[:, None] * (1, rng.uniform(0.4, 0.8))
    return shape_sprite(rng, [blob], rng.uniform(0.1, 0.45) * short_side)


def photo_crop(rng: np.random.Generator, sources: Sources, shape: tuple[int, ...]) -> np.ndarray:
    """A random window of a random photograph, resized to ``shape`` (H, W): (H, W, 3) in 0..255."""
    height, width = shape
    photo = sources.photos[rng.integers(len(sources.photos))]
    zoom = rng.uniform(0.5, min(1.25, photo.shape[1] / width))
    crop_height, crop_width = round(zoom * height), round(zoom * width)
    top = rng.integers(photo.shape[0] - crop_height + 1)
    left = rng.integers(photo.shape[1] - crop_width + 1)
    crop = Image.fromarray(photo[top : top + crop_height, left : left + crop_width])
    pixels = np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def paint(rng: np.random.Generator, shape: tuple[int, ...], avoid: np.ndarray) -> np.ndarray:
    """Flat colour, gradient or stripes (H, W, 3) on ``shape``, as a rule far from ``avoid``."""
    candidates = rng.uniform(0, 255, (rng.integers(1, 6), 3))
    first = candidates[np.argmax(np.linalg.norm(candidates - avoid, axis=1))]
    second = np.clip(first + rng.normal(0, 50, 3), 0, 255)
    angle, period = rng.uniform(0, 2 * np.pi), rng.uniform(4, 12)
    rows, columns = np.indices(shape)
    ramp = rows * np.sin(angle) + columns * np.cos(angle)
    mix = [
        np.zeros_like(ramp),
        (ramp - ramp.min()) / np.ptp(ramp),
        0.5 + 0.5 * np.sin(2 * np.pi * ramp / period),
    ][rng.integers(3)][..., None]
    return first * (1 - mix) + second * mix


def place(
    rng: np.random.Generator, sprite: Sprite, height: int, width: int
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """Put ``sprite`` somewhere on a canvas, at most an eighth of each of its sides outside.

    Returns the window (rows, columns) of the canvas that it touches, its coverage there, and
    where on the canvas, (x, y) in px, its corner lies.
    """
    h, w = sprite.coverage.shape
    top = int(rng.integers(-(h // 8), max(height - h + h // 8, 0) + 1))
    left = int(rng.integers(-(w // 8), max(width - w + w // 8, 0) + 1))
    rows = slice(max(top, 0), min(top + h, height))
    columns = slice(max(left, 0), min(left + w, width))
    inside = sprite.coverage[rows.start - top : rows.stop - top][
        :, columns.start - left : columns.stop - left
    ]
    return (rows, columns), inside, np.array([left, top])


def leaves_enough(mask: np.ndarray, area: int, drawn: Sequence[DrawnObject]) -> bool:
    """Returns True if enough is visible of a new layer, ``mask`` (H, W) of ``area`` px, and below it."""
    return mask.sum() >= MIN_VISIBLE * area and all(
        (other.mask & ~mask).sum() >= MIN_VISIBLE * other.area for other in drawn
    )


class Layer(NamedTuple):
    """A sprite that has found its place on a canvas."""

    sprite: Sprite
    window: tuple[slice, slice]  # rows and columns of the canvas that it touches
    coverage: np.ndarray  # in the window
    corner: np.ndarray  # (x, y) of the sprite on the canvas, px
    mask: np.ndarray  # (H, W) bool: what it covers of the canvas
    area: int  # of the whole sprite, px


def find_layer(
    rng: np.random.Generator,
    sources: Sources,
    category: str | None,
    size: tuple[int, int],
    drawn: Sequence[DrawnObject],
) -> Layer | None:
    """Returns an object of a category, or clutter, on a canvas of ``size`` (H, W).

    Returns None if no trial leaves enough of it and of the objects below it visible.
    """
    for _ in range(PLACEMENT_TRIES):
        if category is None:
            sprite = clutter_sprite(rng, min(size))
        else:
            diameter = min(size) * np.exp(rng.uniform(*np.log(OBJECT_DIAMETER)))
            sprite = object_sprite(rng, sources, category, diameter)
        window, coverage, corner = place(rng, sprite, *size)
        mask = np.zeros(size, bool)
        mask[window] = coverage >= 0.5
        area = int((sprite.coverage >= 0.5).sum())
        if leaves_enough(mask, area, drawn):
            return Layer(sprite, window, coverage, corner, mask, area)
    return None


def draw_scene(
    rng: np.random.Generator,
    sources: Sources,
    categories: Sequence[str],
    first_category: int,
    sides: tuple[int, int],
) -> tuple[np.ndarray, list[DrawnObject]]:
    """Paint one image, back to front; ``first_category`` is sure to be among its objects.

    Returns pixels (H, W, 3) uint8, each side within ``sides`` px, and the objects as visible.
    """
    height, width = (int(side) for side in rng.integers(sides[0], sides[1] + 1, 2))
    canvas = photo_crop(rng, sources, (height, width))
    count = rng.integers(OBJECTS_PER_IMAGE[0], OBJECTS_PER_IMAGE[1] + 1)
    clutter = rng.integers(CLUTTER_PER_IMAGE[0], CLUTTER_PER_IMAGE[1] + 1)
    in_front = int(rng.random() < 0.3)
    wanted = [first_category, *rng.integers(len(categories), size=count - 1)]
    layers = [None] * (clutter - in_front) + wanted + [None] * in_front

    drawn: list[DrawnObject] = []
    for category in layers:
        name = None if category is None else categories[category]
        layer = find_layer(rng, sources, name, (height, width), drawn)
        if layer is None:
            continue
        pixels, shape = canvas[layer.window], layer.coverage.shape
        if category is None and rng.random() < 0.5:
            texture = photo_crop(rng, sources, shape)
        else:
            texture = paint(rng, shape, pixels.mean(axis=(0, 1)))
        canvas[layer.window] += layer.coverage[..., None] * (texture - pixels)
        for other in drawn:
            other.mask &= ~layer.mask
        if category is not None:
            outline = None if layer.sprite.outline is None else layer.sprite.outline + layer.corner
            drawn.append(DrawnObject(int(category), layer.mask, layer.area, outline))

    gain = rng.uniform(0.7, 1.1) * rng.uniform(0.9, 1.1, 3)
    noise = rng.choice([0.0, 3.0, 6.0]) * rng.standard_normal((height, width, 1))
    return np.clip(canvas * gain + noise, 0, 255).astype(np.uint8), drawn


def encode_rle(mask: np.ndarray) -> Entry:
    """COCO's uncompressed run lengths of ``mask`` (H, W): column by column, zeros first."""
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    counts = np.diff(changes, prepend=0, append=mask.size)
    return {"size": list(mask.shape), "counts": [int(n) for n in counts]}


def annotate(drawn: DrawnObject) -> Entry:
    """The COCO fields of an object: a polygon where it is whole and has no hole, else RLE."""
    rows, columns = np.flatnonzero(drawn.mask.any(axis=1)), np.flatnonzero(drawn.mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    area = int(drawn.mask.sum())
    segmentation: Any = encode_rle(drawn.mask)
    if drawn.outline is not None and area == drawn.area:
        segmentation = [[round(float(value), 2) for value in drawn.outline.ravel()]]
    return {
        "category_id": drawn.category + 1,
        "bbox": [float(x), float(y), float(columns[-1] + 1 - x), float(rows[-1] + 1 - y)],
        "area": float(area),
        "segmentation": segmentation,
        "iscrowd": 0,
    }


def write_split(root: Path, split: str, recipe: Entry) -> int:
    """Write the images and the annotation file of one split; returns its number of objects."""
    sources = load_sources(split)
    categories = CATEGORIES[recipe["objects"]]
    images: list[Entry] = []
    annotations: list[Entry] = []
    (root / split).mkdir()
    for image_id in range(1, recipe[split] + 1):
        # A stream per image: its pixels depend neither on the other images nor on their number.
        rng = np.random.default_rng([recipe["seed"], SPLITS.index(split), image_id])
        first_category = (image_id - 1) % len(categories)
        pixels, objects = draw_scene(rng, sources, categories, first_category, recipe["size"])
        file_name = f"{image_id:06d}.png"
        Image.fromarray(pixels).save(root / split / file_name, compress_level=6)
        height, width = pixels.shape[:2]
        images.append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height, "license": 1}
        )
        for drawn in objects:
            numbers = {"id": len(annotations) + 1, "image_id": image_id}
            annotations.append({**numbers, **annotate(drawn)})
    named = [
        {"id": number, "name": name, "supercategory": "shape" if name in SHAPES else "digit"}
        for number, name in enumerate(categories, start=1)
    ]
    coco = {
        "info": {"description": f"demonstration set, {split} split", "version": str(FORMAT)},
        "licenses": [LICENSE],
        "categories": named,
        "images": images,
        "annotations": annotations,
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(coco), encoding="utf-8")
    return len(annotations)


def is_made(out: Path, recipe: Entry, force: bool) -> bool:
    """Returns True if ``out`` can stay. Raises DataError if it holds files that must not be replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        found = json.loads((out / "recipe.json").read_text(encoding="utf-8"))
        is_ours = found["tool"] == recipe["tool"]
    except (OSError, ValueError, TypeError, KeyError):
        is_ours = False
    if not is_ours:
        # Not even with --force: it must not be able to delete what this tool did not make.
        raise DataError(f"{out} exists and is not a set of tools/{recipe['tool']}.py; give another --out")
    if found != recipe and not force:
        raise DataError(
            f"{out} holds a set made with other parameters; replace it with --force or give another --out"
        )
    return not force


def make(out: Path, recipe: Entry, write: Callable[[Path, str, Entry], object]) -> Entry:
    """Write the set beside ``out``, then rename it; returns what ``write`` did for each split."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    replaced = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    try:
        (partial / "annotations").mkdir(parents=True)
        written = {split: write(partial, split, recipe) for split in SPLITS}
        (partial / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(replaced)
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(replaced, ignore_errors=True)
    return written


def get_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Make a small COCO-format detection set from what scikit-learn ships.",
        epilog="examples:\n"
        "  python tools/make_demo_data.py --out demo_data\n"
        "  python tools/make_demo_data.py --out digits --objects digits --size 128 160 --seed 7\n"
        "  python tools/make_demo_data.py --out tiny --train 32 --val 16 --test 16",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the random numbers, 0 or more (default: 0)"
    )
    parser.add_argument(
        "--objects", choices=CATEGORIES, default="shapes", help="what to detect (default: shapes)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(96, 128),
        metavar=("MIN", "MAX"),
        help=f"smallest and largest side of an image in pixels, {MIN_SIDE} to {MAX_SIDE} (default: 96 128)",
    )
    for split, count in zip(SPLITS, (1200, 300, 300)):
        parser.add_argument(
            f"--{split}",
            type=int,
            default=count,
            metavar="N",
            help=f"number of images in the {split} split (default: {count})",
        )
    parser.add_argument("--force", action="store_true", help="replace a demonstration set that --out holds")
    return parser


def get_recipe(args: argparse.Namespace) -> Entry:
    """Returns the parameters that determine every byte of the set. Raises DataError if they make none."""
    if args.seed < 0:
        raise DataError(f"--seed must be 0 or more, not {args.seed}")
    low, high = args.size
    if not MIN_SIDE <= low <= high <= MAX_SIDE:
        raise DataError(
            f"--size must be MIN MAX with {MIN_SIDE} <= MIN <= MAX <= {MAX_SIDE}, not {low} {high}"
        )
    classes = len(CATEGORIES[args.objects])
    counts = {split: getattr(args, split) for split in SPLITS}
    for split, count in counts.items():
        if count < classes:
            raise DataError(
                f"--{split} must be at least {classes}, to show each class of "
                f"--objects {args.objects}; it is {count}"
            )
    return {
        "tool": TOOL,
        "format": FORMAT,
        "seed": args.seed,
        "objects": args.objects,
        "size": [low, high],
        **counts,
    }


def run(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    get_recipe: Callable[[argparse.Namespace], Entry],
    write: Callable[[Path, str, Entry], object],
) -> Entry | None:
    """Make the set that a command line asks for; what ``write`` did for each split, None if it was there.

    Ends the process with one line where it cannot be made.
    """
    try:
        recipe = get_recipe(args)
        out = args.out.resolve()
        if is_made(out, recipe, args.force):
            print(f"{args.out} holds this set already")
            return None
        return make(out, recipe, write)
    except (DataError, OSError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; {args.out} is as it was\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Make the set unless it is there; returns the exit code."""
    parser = get_parser()
    args = parser.parse_args(argv)
    objects = run(parser, args, get_recipe, write_split)
    if objects is not None:
        summary = ", ".join(f"{s} {getattr(args, s)} images / {objects[s]} objects" for s in SPLITS)
        print(f"{args.out}: {summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
