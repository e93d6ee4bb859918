"""Timing several things in turn, so that whatever else slows the machine down slows all of them down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Callable, NamedTuple

import torch

Job = Callable[[], object]
PAUSE = 10_000_000  # cycles of a GPU, some 5 ms: longer than it takes to launch what the loss is made of


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

    `warm`, for short jobs, runs each twice in a row and counts the second time, when the caches hold what
    they can of it; on a GPU without the time that launching takes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(warm_up + runs):
        for name, job in jobs.items():
            if warm:
                job()
            taken = timed(job, device, launched=warm)
            if turn >= warm_up:
                seconds[name].append(taken)
    return {name: Timing(min(taken), statistics.median(taken)) for name, taken in seconds.items()}


def timed(job: Job, device: torch.device, launched: bool = False) -> float:
    """Seconds of one run; on a GPU by its own clock, and where `launched`, of work that is queued already."""
    if device.type != "cuda":
        start = time.perf_counter()
        job()
        return time.perf_counter() - start
    start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    if launched:
        # While the GPU pauses, its work queues up; else it would wait for the host between short kernels, and
        # that would be what is measured.
        torch.cuda._sleep(PAUSE)
    start_event.record()
    job()
    end_event.record()
    torch.cuda.synchronize(device)
    return start_event.elapsed_time(end_event) / 1e3
