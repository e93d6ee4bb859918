"""The scalars that a run has logged, as series over the iterations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from mgd_det.run.metrics import read_metrics

Points = dict[int, float]  # iteration -> value, in the order of the iterations
Series = Mapping[str, Points]  # scalar -> its points


def read_series(path: Path) -> dict[str, Points]:
    """Returns every scalar's finite values by iteration, {} if there is no such file.

    Where a resumed run repeats iterations, the later value counts.
    """
    if not path.is_file():
        return {}
    found: dict[str, Points] = {}
    for line in read_metrics(path):
        for name, value in line.items():
            if name != "iteration" and "iteration" in line and math.isfinite(value):
                found.setdefault(name, {})[int(line["iteration"])] = float(value)
    return {name: dict(sorted(points.items())) for name, points in found.items()}


def last_iteration(series: Series) -> int | None:
    """The last iteration that anything was logged at."""
    return max((iteration for points in series.values() for iteration in points), default=None)


def distillation_losses(series: Series) -> list[str]:
    """Names of the losses that methods of distillation add, without "loss_": those that have a weight."""
    stems = [name[: -len("/weight")] for name in series if name.endswith("/weight")]
    return [stem for stem in stems if f"loss_{stem}" in series]


def task_losses(series: Series) -> list[str]:
    """Names of the losses that the detector has by itself."""
    distilled = {f"loss_{stem}" for stem in distillation_losses(series)}
    return sorted(name for name in series if name.startswith("loss_") and name not in distilled)
