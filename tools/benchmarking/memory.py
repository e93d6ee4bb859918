"""Peak memory of training steps, each kind in a process of its own."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import torch

from benchmarking.steps import Bench

STEPS = 3


def peak_memory(*arguments: Any) -> dict[str, float]:
    """MiB at the peak of student, floor and distilled steps.

    Args:
        arguments: of Bench. On the CPU what the process held before it built anything is left out.
    """
    found = {}
    for kind in ("student", "floor", "distilled"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[kind] = pool.apply(_peak, (kind, arguments))
    return found


def _peak(kind: str, arguments: tuple[Any, ...]) -> float:
    before = _resident()
    bench = Bench(*arguments)
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(STEPS):
        getattr(bench, f"{kind}_step")()
    if bench.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return _resident() - before


def _resident() -> float:
    """The largest resident size so far, in MiB; getrusage's would be the parent's, where that is larger."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**10
