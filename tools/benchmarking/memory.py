"""Peak memory of training steps, each kind in processes of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from benchmarking.steps import Bench

PROCESSES, STEPS = 3, 3
# What is freed goes back to the system: else glibc keeps some of it, how much depends on what lay where.
# Read when a process starts; other C libraries pass over them.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def peak_memory(processes: int, *arguments: Any) -> dict[str, float]:
    """MiB at the peak of student, floor and distilled steps: the least of several processes.

    Args:
        processes: for each kind.
        arguments: of Bench. On the CPU what the process held before it built anything is left out.
    """
    kinds = ("student", "floor", "distilled")
    return {kind: min(_in_process(kind, arguments) for _ in range(processes)) for kind in kinds}


def _in_process(kind: str, arguments: tuple[Any, ...]) -> float:
    with _environment(ALLOCATOR), multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (kind, arguments))


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _peak(kind: str, arguments: tuple[Any, ...]) -> float:
    before = _resident()
    bench = Bench(*arguments)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # not every container has it
        Path("/proc/self/clear_refs").write_text("5")  # building them took more than they hold
    for _ in range(STEPS):
        getattr(bench, f"{kind}_step")()
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _resident() - before


def _resident() -> float:
    """The largest resident size so far, in MiB; getrusage's would be the parent's, where that is larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10
