"""Reaches into private parts of Detectron2, fvcore and torch, each with its reason.

Subclasses that override or call protected members of their own base class do so in their own modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, TypedDict

import torch
import torch.distributed as dist
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.defaults import create_ddp_model
from detectron2.engine.hooks import BestCheckpointer, EvalHook, PeriodicWriter
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from torch import Tensor, nn

# torch has no public base class of its batch norms of 1 to 3 dimensions and of several processes.
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm

__all__ = [
    "BatchNorm",
    "ScalarHistory",
    "allow_compilations",
    "apply_to_tensors",
    "evaluation_hooks",
    "last_eval_results",
    "mapper_of",
    "metric_writers",
    "restore_scalars",
    "saved_scalars",
    "set_local_group",
    "undo_compile",
    "wrap_in_ddp",
]


class ScalarHistory(TypedDict):
    """A logged scalar's history as it goes into a checkpoint."""

    data: list[list[float]]  # the latest (value, iteration) pairs
    count: int
    average: float  # over all values so far
    smoothed: bool


def saved_scalars(storage: EventStorage, length: int) -> dict[str, ScalarHistory]:
    """Returns the history of every scalar, its latest `length` values.

    fvcore's HistoryBuffer has no state dict, and keeps its count to itself.
    """
    return {
        name: {
            "data": [list(pair) for pair in history.values()[-length:]],
            "count": history._count,
            "average": history._global_avg,
            "smoothed": storage.smoothing_hints()[name],
        }
        for name, history in storage.histories().items()
    }


def restore_scalars(storage: EventStorage, scalars: Mapping[str, ScalarHistory], last_written: int) -> None:
    """Put saved histories back into an event storage, which can only append.

    Args:
        last_written: the last iteration that is in metrics.json; later values still wait to be written.
    """
    for name, state in scalars.items():
        history = storage._history[name]
        history._data = [tuple(pair) for pair in state["data"]]
        history._count, history._global_avg = state["count"], state["average"]
        storage._smoothing_hints[name] = state["smoothed"]
        if state["data"][-1][1] > last_written:
            storage._latest_scalars[name] = tuple(state["data"][-1])


def metric_writers(trainer: TrainerBase) -> list[EventWriter]:
    """Returns what a trainer writes its scalars with, which its hook keeps to itself."""
    hooks = [hook for hook in trainer._hooks if isinstance(hook, PeriodicWriter)]
    return [writer for hook in hooks for writer in hook._writers]


def evaluation_hooks(trainer: TrainerBase) -> list[HookBase]:
    """Returns a trainer's hooks that evaluate, and those that keep the best weights, in their order."""
    return [hook for hook in trainer._hooks if isinstance(hook, (EvalHook, BestCheckpointer))]


def set_local_group(ranks_per_machine: int) -> None:
    """Tell Detectron2 which ranks share this machine; 0.6 has no function for it."""
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(ranks_per_machine)
        return
    machine = dist.get_rank() // ranks_per_machine
    for i in range(dist.get_world_size() // ranks_per_machine):
        group = dist.new_group(list(range(i * ranks_per_machine, (i + 1) * ranks_per_machine)))
        if i == machine:
            comm._LOCAL_PROCESS_GROUP = group


def wrap_in_ddp(model: nn.Module, device: torch.device) -> nn.Module:
    """Returns the model in DistributedDataParallel, if there are several processes.

    Detectron2 names a GPU's number in any case, which DDP refuses for a model on the CPU.
    """
    on_cpu = {"device_ids": None} if device.type == "cpu" else {}
    wrapped: nn.Module = create_ddp_model(model, broadcast_buffers=False, **on_cpu)
    return wrapped


def last_eval_results(trainer: DefaultTrainer) -> Mapping[str, Mapping[str, float]] | None:
    """Returns the results of the trainer's last evaluation, which it keeps to itself; None without one."""
    return getattr(trainer, "_last_eval_results", None)


def mapper_of(loader: Any) -> Callable[..., Any] | None:
    """Returns the function by which a data loader maps the records of a data set, None if it is not found.

    Detectron2's data sets keep it, and the data sets that they wrap, to themselves.
    """
    found = None
    while loader is not None:
        # The innermost one maps records. One further out, where there is one, collates batches.
        found = getattr(loader, "_map_func", None) or getattr(loader, "mapper", None) or found
        inside = (getattr(loader, name, None) for name in ("dataset", "_dataset"))
        loader = next((data for data in inside if data is not None), None)
    return getattr(found, "_obj", found)  # without the wrapper that makes it picklable


def apply_to_tensors(model: nn.Module, fn: Callable[[Tensor], Tensor]) -> None:
    """Do to a model what `.to()` or `.half()` does to another; torch hands on only the function."""
    model._apply(fn)


def allow_compilations(number: int) -> None:
    """Let torch.compile keep at least so many versions of one function; it has no public setting for it."""
    config = torch._dynamo.config
    config.cache_size_limit = max(config.cache_size_limit, number)


def undo_compile(model: nn.Module) -> None:
    """Make all modules run as if `.compile()` had not been called; torch has no call for it."""
    for module in model.modules():
        module._compiled_call_impl = None
