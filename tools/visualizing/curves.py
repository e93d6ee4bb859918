"""Curves over the iterations: losses, weights, gradients and AP of one or several runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from visualizing.page import GREY, Missing, Picture, colour, marker, new_figure, render
from visualizing.runs import Series, distillation_losses, task_losses

FEW = 12  # points, up to which each one is marked


class Text(NamedTuple):
    """The words about a group of curves."""

    name: str  # of the file
    title: str
    caption: str
    reference: float | None = None  # to compare ratios with; the scale is then logarithmic


class Curves(NamedTuple):
    """Small panels that belong together."""

    text: Text
    panels: dict[str, str]  # title -> scalar in metrics.json


TEXTS = (  # of AP, the task's losses, those of distillation, gradients and weights
    Text(
        "curves_ap",
        "How good the detector is.",
        "COCO average precision on the test set, 0 to 100, at every evaluation: AP is the mean over "
        "strict and lax overlaps, AP50 asks for half an overlap only. Higher is better. A difference "
        "between two single runs may be chance: compare several seeds before believing a small one.",
    ),
    Text(
        "curves_task",
        "The detector's own losses.",
        "What a detector is trained on without any teacher, on training images: its errors of "
        "classification and of box regression. Lower is better, but a lower training loss alone does "
        "not make a better detector.",
    ),
    Text(
        "curves_distillation",
        "The losses of distillation.",
        "How far the student is from its targets, already multiplied by the weight. They should fall, "
        "fast at first. Losses of different taps or weights are not to be compared by their height.",
    ),
    Text(
        "curves_gradients",
        "How hard distillation pulls.",
        "Size of a distillation loss's gradient at its tap, beside that of the task's losses at the "
        "same place, on a logarithmic scale. At the dotted line, 1, both pull equally hard; far above, "
        "the student follows the teacher and hardly the labels; far below, the loss has little effect.",
        reference=1.0,
    ),
    Text(
        "curves_weights",
        "The weights of distillation.",
        "What each distillation loss is multiplied by. Level, unless DISTILL.SCHEDULE lets it warm up, "
        "fade or stop.",
    ),
)


def list_curves(runs: Mapping[str, Series]) -> list[Curves]:
    """Returns the groups of curves for which these runs have scalars."""
    found = runs.values()
    stems = list(dict.fromkeys(stem for series in found for stem in distillation_losses(series)))
    tasks = list(dict.fromkeys(name for series in found for name in task_losses(series)))
    measured = [stem for stem in stems if any(f"{stem}/gradient_ratio" in series for series in found)]
    aps = [
        f"{kind}/{name}"
        for kind in ("bbox", "segm")
        for name in ("AP", "AP50")
        if any(f"{kind}/{name}" in series for series in found)
    ]
    words = {"bbox": "box", "segm": "mask"}
    panels = (
        {f"{words[name[:4]]} {name[5:]}": name for name in aps},
        {name: name for name in tasks},
        {f"loss_{stem}": f"loss_{stem}" for stem in stems},
        {stem: f"{stem}/gradient_ratio" for stem in measured},
        {stem: f"{stem}/weight" for stem in stems},
    )
    return [Curves(text, titles) for text, titles in zip(TEXTS, panels) if titles]


def draw_curves(group: Curves, runs: Mapping[str, Series]) -> Picture:
    """Draw a panel for each scalar, with a line for each run that has it."""
    columns = 3 if len(group.panels) == 3 else 2
    rows = -(-len(group.panels) // columns)
    figure = new_figure(0.35 + 1.75 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    drawn: dict[str, Any] = {}
    for axis, (title, scalar) in zip(axes, group.panels.items()):
        for index, (name, series) in enumerate(runs.items()):
            points = series.get(scalar, {})
            if points:
                mark = marker(index) if len(points) <= FEW else ""
                look: dict[str, Any] = {"color": colour(index), "marker": mark, "clip_on": not mark}
                drawn.setdefault(name, axis.plot(list(points), list(points.values()), **look)[0])
                if len(points) == 1:  # of which a line would say nothing
                    [(x, y)] = points.items()
                    axis.annotate(
                        f"{y:.3g}", (x, y), (-6, 0), textcoords="offset points", ha="right", va="center"
                    )
        axis.set_title(title, loc="left")
        axis.set(xlim=(0, 1.05 * axis.get_xlim()[1]), xlabel="iteration")
        axis.grid(color="0.92")
        axis.set_axisbelow(True)
        set_scale(axis, group, [y for series in runs.values() for y in series.get(scalar, {}).values()])
    for axis in axes[len(group.panels) :]:
        axis.set_axis_off()
    if len(runs) > 1:
        figure.legend(drawn.values(), drawn.keys(), loc="outside upper center", ncols=min(len(drawn), 3))
    said = [f"{name}: {in_words(group.panels, series)}" for name, series in runs.items() if name in drawn]
    alt = f"Curves over the iterations. {'. '.join(said)}."
    return render(figure, group.text.name, alt, group.text.title, group.text.caption)


def set_scale(axis: Axes, group: Curves, heights: Sequence[float]) -> None:
    """Let the scale begin at 0; or show whole decades of a logarithmic scale, and the reference line."""
    if group.text.reference is None:
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
        return
    values = [group.text.reference, *(y for y in heights if y > 0)]
    decades = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    axis.set_yscale("log")
    axis.set_ylim(10.0 ** decades[0] / 1.2, 10.0 ** decades[1] * 1.2)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.axhline(group.text.reference, color=GREY, linestyle=":", linewidth=1)


def in_words(panels: Mapping[str, str], series: Series) -> str:
    """Returns the first and last values of some scalars of a run, as text."""
    parts = []
    for title, scalar in panels.items():
        values = list(series.get(scalar, {}).values())
        if len(values) == 1:
            parts.append(f"{title} {values[0]:.3g}")
        elif values:
            parts.append(f"{title} from {values[0]:.3g} to {values[-1]:.3g}")
    return ", ".join(parts)


def draw_all(runs: Mapping[str, Series]) -> list[Picture]:
    """Draw all curves for which there are scalars.

    Raises:
        Missing: there are none.
    """
    groups = list_curves(runs)
    if not groups:
        raise Missing("metrics.json holds no losses yet.")
    return [draw_curves(group, runs) for group in groups]


def last_values(series: Series, names: Sequence[str]) -> list[float | None]:
    """Returns the last value of each scalar, None where there is none."""
    return [next(reversed(series[name].values())) if name in series else None for name in names]
