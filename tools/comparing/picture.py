"""The picture of a comparison."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparing.cells import count
from comparing.curves import Point
from comparing.summary import CONFIDENCE, Row
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The Okabe-Ito palette, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
GREY = "0.45"
CURVE_HEIGHT = 4.0  # inches


def draw(
    rows: Sequence[Row],
    baseline: str,
    names: Mapping[str, str],
    curves: Mapping[str, Sequence[Point]],
    path: Path,
) -> None:
    """Draw the differences to the baseline and below them, if there are any, the curves of AP."""
    height = 1.5 + 0.55 * max(len(rows) - 1, 1)
    figure = Figure(figsize=(7.5, height + (CURVE_HEIGHT if curves else 0)), layout="constrained")
    if curves:
        upper, lower = figure.subplots(2, height_ratios=(height, CURVE_HEIGHT))
        draw_curves(lower, {names[arm]: points for arm, points in curves.items()})
    else:
        upper = figure.add_subplot()
    draw_differences(upper, rows, baseline, names)
    figure.savefig(path, dpi=120)


def draw_differences(axis: Axes, rows: Sequence[Row], baseline: str, names: Mapping[str, str]) -> None:
    """Draw for each arm the mean difference to the baseline, its interval, and a dot for each seed."""
    rows = [row for row in rows if row.arm != baseline]
    axis.axvline(0, color="black", linewidth=1)
    for y, row in enumerate(rows):
        if row.difference is not None:
            if row.half_width is not None:  # of several seeds
                width, label = row.half_width, f"mean, {CONFIDENCE:.0%} interval"
                axis.errorbar(row.difference, y, xerr=width, fmt="D", color=BLUE, capsize=4, label=label)
            below = [y + 0.22] * len(row.differences)  # the interval's marks stay free
            seeds = list(row.differences.values())
            axis.scatter(seeds, below, s=22, facecolors="none", edgecolors=GREY, label="one seed")
    found = [names[row.arm] + ("" if row.n == row.n_wanted else f" ({count(row)})") for row in rows]
    axis.set_yticks(range(len(rows)), [textwrap.fill(name, 32) for name in found])
    axis.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    axis.set_xlabel(textwrap.fill(f"box AP minus that of “{baseline}” with the same seed", 80))
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    handles, labels = axis.get_legend_handles_labels()
    unique = dict(zip(labels, handles))
    if unique:
        place: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1), "ncols": 2}
        axis.legend(unique.values(), unique.keys(), frameon=False, **place)


def draw_curves(axis: Axes, curves: Mapping[str, Sequence[Point]]) -> None:
    """Draw AP over the iterations for each arm: the mean over its seeds within one standard deviation."""
    styles = itertools.product(("-", "--", ":"), (GREY, BLUE, ORANGE, GREEN, PURPLE, VERMILION, SKY))
    for (name, points), (line, colour) in zip(curves.items(), itertools.cycle(styles)):
        iterations = [point.iteration for point in points]
        means, widths = [point.ap for point in points], [point.ap_sd or 0.0 for point in points]
        low, high = ([m + sign * w for m, w in zip(means, widths)] for sign in (-1, 1))
        label = textwrap.fill(name, 40)
        axis.plot(iterations, means, line, color=colour, marker="o", markersize=3, label=label)
        axis.fill_between(iterations, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel("iterations")
    axis.set_ylabel("box AP, mean ± one s.d.")
    axis.set_ylim(bottom=0)
    axis.grid(color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right", fontsize="small")
