"""A method's losses by themselves, beside copying the teacher's features that they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable

import torch
from benchmarking.steps import Bench
from benchmarking.timing import Job, in_turn
from torch import Tensor


def method_losses(bench: Bench, runs: int) -> dict[str, Any]:
    """Forward and backward of all losses down to the student's features, with norms and adapters."""
    method = next(iter(bench.model.methods.values()))
    features = {tap: detached(entry) for tap, entry in bench.features.items()}
    leaves = [leaf for entry in features.values() for leaf in tensors(entry, "student")]
    copied = [teacher for entry in features.values() for teacher in tensors(entry, "teacher")]
    buffers = [torch.empty_like(teacher) for teacher in copied]

    def copy() -> None:
        for teacher, buffer in zip(copied, buffers):
            buffer.copy_(teacher)

    def losses() -> None:
        for tensor in (*leaves, *method.parameters()):
            tensor.grad = None
        with bench.running():
            total = torch.stack(list(method(features).values())).sum()
        total.backward()

    jobs: dict[str, Job] = {"copy": copy, "losses": losses}
    if method.matches:
        jobs["observe"] = bench.observing
    seconds = in_turn(jobs, runs, bench.device, warm=True)
    return {
        "copy_seconds": seconds["copy"].median,
        "mebibytes": sum(teacher.nbytes for teacher in copied) / 2**20,
        "ratios": {kind: seconds[kind].over(seconds["copy"])._asdict() for kind in jobs if kind != "copy"},
    }


def detached(entry: Any) -> Any:
    """Features of a tap, of all levels of a head or of predictions, cut off the student's graph."""
    if isinstance(entry, list):
        return [detached(level) for level in entry]
    return entry._replace(student=mapped(lambda tensor: tensor.detach().requires_grad_(), entry.student))


def mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """A tensor, or a named tuple of some, changed."""
    if isinstance(value, Tensor) or value is None:
        return None if value is None else change(value)
    return type(value)(*(mapped(change, part) for part in value))


def tensors(entry: Any, side: str) -> Iterator[Tensor]:
    """Those of one network."""
    if isinstance(entry, list):
        for level in entry:
            yield from tensors(level, side)
        return
    value = getattr(entry, side)
    yield from ([value] if isinstance(value, Tensor) else (part for part in value if part is not None))
