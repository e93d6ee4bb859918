"""Detections of several detectors on the same images, beside the ground truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data.detection_utils import read_image
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle
from visualizing.page import WIDTH, Picture, colour, new_figure, render
from visualizing.runs import Box, Sample

LEAST_SCORE = 0.3  # of a box that is drawn
LEAST_IOU = 0.5  # of a box that is right, as for AP50


def judge(found: Sequence[Box], truth: Sequence[Box], crowds: Sequence[Box] = ()) -> list[bool | None]:
    """Which of the boxes found are right, as COCO evaluation decides it at one threshold.

    From the highest score on, each takes the free true box of its class that it overlaps most, if their
    intersection over union (IoU) is at least `LEAST_IOU`. One that takes none is wrong, False; or nothing is
    said of it, None, where as much of its area lies in a crowd of its class.
    """
    free = set(range(len(truth)))
    right = [None if any(in_crowd(box, crowd) for crowd in crowds) else False for box in found]
    for index in sorted(range(len(found)), key=lambda i: -(found[i].score or 0)):
        mine = [j for j in sorted(free) if truth[j].label == found[index].label]
        best = max(mine, key=lambda j: overlap(found[index], truth[j]), default=None)
        if best is not None and overlap(found[index], truth[best]) >= LEAST_IOU:
            free.remove(best)
            right[index] = True
    return right


def in_crowd(box: Box, crowd: Box) -> bool:
    return box.label == crowd.label and shared_area(box, crowd) >= LEAST_IOU * area(box)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, 0 where neither has an area."""
    shared = shared_area(a, b)
    union = area(a) + area(b) - shared
    return shared / union if union else 0.0


def shared_area(a: Box, b: Box) -> float:
    width = min(a.corners[2], b.corners[2]) - max(a.corners[0], b.corners[0])
    height = min(a.corners[3], b.corners[3]) - max(a.corners[1], b.corners[1])
    return max(width, 0) * max(height, 0)


def area(box: Box) -> float:
    x0, y0, x1, y1 = box.corners
    return (x1 - x0) * (y1 - y0)


def draw_detections(
    number: int, sample: Sample, found: Mapping[str, Sequence[Box]], classes: Sequence[str]
) -> Picture:
    """One image: its ground truth, and the boxes of each detector, two panels in a row.

    Args:
        number: of the image in the report, from 1.
        sample: the image.
        found: what each detector found, by the detector's name.
        classes: names of the classes.
    """
    image = read_image(sample.record["file_name"], "RGB")
    rows = (len(found) + 2) // 2
    panel = WIDTH / 2 * image.shape[0] / image.shape[1]
    figure = new_figure(rows * (min(panel, 4.0) + 0.2))
    axes = figure.subplots(rows, 2, squeeze=False).flatten().tolist()
    titles = [f"ground truth: {len(sample.truth)} objects"]
    titles[0] += ", crowds dashed" if sample.crowds else ""
    draw_boxes(axes[0], sample.truth, [True] * len(sample.truth), classes)
    draw_boxes(axes[0], sample.crowds, [False] * len(sample.crowds), classes)
    for axis, (name, boxes) in zip(axes[1:], found.items()):
        right = judge(boxes, sample.truth, sample.crowds)
        draw_boxes(axis, boxes, right, classes)
        wrong = right.count(False)
        titles.append(f"{name}: {right.count(True)} of {len(sample.truth)} found, {wrong} wrong")
    for axis, title in zip(axes, titles):
        axis.imshow(image)
        axis.set_title(title, loc="left", pad=3)
    for axis in axes:
        axis.set_axis_off()
    return render(
        figure,
        f"detections_{number}",
        f"Image {number} with boxes. {'; '.join(titles)}.",
        f"Image {number}.",
        f"{'; '.join(titles)}.",
    )


def draw_boxes(
    axis: Axes, boxes: Sequence[Box], right: Sequence[bool | None], classes: Sequence[str]
) -> None:
    """Boxes with class and score: labels of right ones above, of wrong ones, which are dashed, below."""
    judged = [(box, is_right) for box, is_right in zip(boxes, right) if is_right is not None]
    for box, is_right in sorted(judged, key=lambda pair: pair[1]):  # right ones on top
        x0, y0, x1, y1 = box.corners
        shade = colour(box.label)
        look: dict[str, Any] = (
            {"linewidth": 1.8} if is_right else {"linewidth": 1.0, "linestyle": (0, (3, 2))}
        )
        axis.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=shade, **look))
        axis.text(
            x0 if is_right else x1,
            y0 if is_right else y1,
            classes[box.label] + ("" if box.score is None else f" {100 * box.score:.0f}"),
            fontsize=6.5 if is_right else 5.5,
            color=readable_on(shade),
            ha="left" if is_right else "right",
            va="top",
            bbox={"facecolor": shade, "edgecolor": "none", "pad": 0.5, "alpha": 0.9 if is_right else 0.7},
            clip_on=True,
        )


def readable_on(background: str) -> str:
    """Black or white, whichever has the higher contrast on a colour."""
    red, green, blue = to_rgb(background)
    return "black" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "white"
