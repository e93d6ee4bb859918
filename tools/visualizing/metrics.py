"""Reading what a run has logged: Detectron2's metrics.json, a JSON object on each line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

Points = dict[int, float]  # iteration -> value, in the order of the iterations
Series = Mapping[str, Points]  # scalar -> its points


def read_metrics(path: Path) -> dict[str, Points]:
    """Every scalar's finite values by iteration; {} where there is no such file.

    Lines that are not whole are left out: a run that is still going, or was killed, leaves one at the end,
    and one that was resumed after that has it in the middle. Where a resumed run repeats iterations, the
    later value counts.
    """
    if not path.is_file():
        return {}
    found: dict[str, Points] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            iteration = int(record.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        for name, value in record.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                found.setdefault(name, {})[iteration] = float(value)
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
