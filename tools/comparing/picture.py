"""The picture of a comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparing.cells import count
from comparing.summary import CONFIDENCE, Row
from matplotlib.figure import Figure

BLUE, GREY = "#0072B2", "0.45"  # of the Okabe-Ito palette, which colour-blind readers can tell apart


def draw(rows: Sequence[Row], baseline: str, names: Mapping[str, str], path: Path) -> None:
    """Draw for each arm the mean difference to the baseline, its interval, and a dot for each seed."""
    rows = [row for row in rows if row.arm != baseline]
    figure = Figure(figsize=(7.5, 1.5 + 0.55 * max(len(rows), 1)), layout="constrained")
    axis = figure.add_subplot()
    axis.axvline(0, color="black", linewidth=1)
    for y, row in enumerate(rows):
        if row.difference is not None:
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
    figure.savefig(path, dpi=120)
