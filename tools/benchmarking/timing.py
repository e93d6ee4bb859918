"""Timing several things in turn, so that whatever else slows the machine down slows all of them down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Callable, NamedTuple

import torch

Job = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of one run."""

    minimum: float
    median: float

    def over(self, other: Timing) -> Timing:
        """Both divided by another's."""
        return Timing(self.minimum / other.minimum, self.median / other.median)


def in_turn(
    jobs: Mapping[str, Job], runs: int, device: torch.device, warm_up: int = 2, warm: bool = False
) -> dict[str, Timing]:
    """Run all jobs one after the other, `runs` times, after `warm_up` rounds that do not count.

    `warm` runs each job twice in a row and counts the second time, when the caches hold what they can of it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(warm_up + runs):
        for name, job in jobs.items():
            if warm:
                job()
            taken = timed(job, device)
            if turn >= warm_up:
                seconds[name].append(taken)
    return {name: Timing(min(taken), statistics.median(taken)) for name, taken in seconds.items()}


def timed(job: Job, device: torch.device) -> float:
    """Seconds of one run; on a GPU by its own clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        job()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start_event.record()
    job()
    end_event.record()
    torch.cuda.synchronize(device)
    return start_event.elapsed_time(end_event) / 1e3
