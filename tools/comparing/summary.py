"""Statistics over the seeds, a row for each arm."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from commandline import Record
from scipy.stats import t as student_t

CONFIDENCE = 0.95


class Row(NamedTuple):
    """Statistics over the runs of one arm; None where they are too few."""

    arm: str
    iterations: int
    n: int  # runs that are finished
    n_wanted: int
    ap: float | None
    ap_sd: float | None
    ap50: float | None
    difference: float | None  # mean, paired, to the baseline
    half_width: float | None  # of its confidence interval
    differences: dict[int, float]  # by seed
    seconds_per_iteration: float | None
    seconds_ratio: float | None  # to the baseline's
    memory_mib: float | None
    memory_ratio: float | None


class Pair(NamedTuple):
    """The paired difference of two arms; None where they have too few seeds in common."""

    arm: str
    other: str
    n: int  # seeds that both have
    difference: float | None  # mean of the arm's AP minus the other's
    half_width: float | None
    differences: dict[int, float]  # by seed


def compare_pairs(records: Sequence[Record], pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Returns the paired differences of pairs of arms."""
    rows = []
    for pair in pairs:
        one, other = ({r["seed"]: r["AP"] for r in records if r["arm"] == arm} for arm in pair)
        found = paired(one, other)
        values = list(found.values())
        rows.append(Pair(*pair, len(values), mean(values), half_width(values), found))
    return rows


def summarise(
    records: Sequence[Record], iterations: Mapping[str, int], baseline: str, n_wanted: int
) -> list[Row]:
    """Returns one row for each arm.

    Args:
        records: of the finished runs.
        iterations: of every arm, in the order of the report.
        baseline: the arm that the others are compared with.
        n_wanted: runs that an arm has when it is complete.
    """
    runs = {arm: [r for r in records if r["arm"] == arm] for arm in iterations}
    ap = {arm: {r["seed"]: r["AP"] for r in of_arm} for arm, of_arm in runs.items()}
    seconds = {arm: median(of_arm, "seconds_per_iteration") for arm, of_arm in runs.items()}
    on_gpu = any(r["peak_gpu_memory_mib"] for r in records)  # a GPU's memory is not compared with a process's
    peak = "peak_gpu_memory_mib" if on_gpu else "peak_memory_mib"
    memory = {arm: median(of_arm, peak) for arm, of_arm in runs.items()}
    rows = []
    for arm in iterations:
        differences = {} if arm == baseline else paired(ap[arm], ap[baseline])
        rows.append(
            Row(
                arm=arm,
                iterations=iterations[arm],
                n=len(runs[arm]),
                n_wanted=n_wanted,
                ap=mean(list(ap[arm].values())),
                ap_sd=deviation(list(ap[arm].values())),
                ap50=mean([r["AP50"] for r in runs[arm]]),
                difference=mean(list(differences.values())),
                half_width=half_width(list(differences.values())),
                differences=differences,
                seconds_per_iteration=seconds[arm],
                seconds_ratio=ratio(seconds[arm], seconds[baseline]),
                memory_mib=memory[arm],
                memory_ratio=ratio(memory[arm], memory[baseline]),
            )
        )
    return rows


def mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Returns the standard deviation, estimated from a sample; None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def half_width(values: Sequence[float]) -> float | None:
    """Returns half the width of Student's confidence interval for the mean; None of fewer than two values."""
    if len(values) < 2:
        return None
    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / len(values) ** 0.5


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[int, float]:
    """Returns the differences to the baseline by seed, for the seeds that both have."""
    return {seed: value - baseline[seed] for seed, value in values.items() if seed in baseline}


def median(records: Sequence[Record], key: str) -> float | None:
    """Returns the median over the runs that have a value for the key, None if no run has one."""
    values = [r[key] for r in records if r[key] is not None]
    return statistics.median(values) if values else None


def ratio(value: float | None, reference: float | None) -> float | None:
    return value / reference if value is not None and reference else None
