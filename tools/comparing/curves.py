"""AP over the iterations of training, for each arm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from commandline import Record
from comparing.summary import deviation


class Point(NamedTuple):
    """AP after a number of iterations, over the seeds of an arm."""

    iteration: int
    ap: float  # mean
    ap_sd: float | None  # None with one seed


def curves(records: Sequence[Record], arms: Iterable[str]) -> dict[str, list[Point]]:
    """Returns the curves of the arms, none if no run was evaluated before its end.

    A curve has the iterations at which all finished runs of its arm were evaluated. As at the end of a run, a
    network that detected nothing has an AP of 0.
    """
    if all(len(record.get("AP_by_iteration", ())) < 2 for record in records):
        return {}
    found = {arm: curve([r.get("AP_by_iteration", {}) for r in records if r["arm"] == arm]) for arm in arms}
    return {arm: points for arm, points in found.items() if points}


def curve(runs: Sequence[dict[str, float | None]]) -> list[Point]:
    """Returns the points of some runs, each given as AP, None for no detection, by iteration."""
    common = set.intersection(*map(set, runs)) if runs else set()
    points = []
    for iteration in sorted(common, key=int):
        aps = [run[iteration] or 0.0 for run in runs]
        points.append(Point(int(iteration), sum(aps) / len(aps), deviation(aps)))
    return points
