"""Sums over processes and their numbers, for code that runs in one of several. Needs torch alone."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def num_ranks() -> int:
    """Returns the number of processes that train together."""
    return dist.get_world_size() if _initialized() else 1


def rank() -> int:
    """Returns this process's number, from 0."""
    return dist.get_rank() if _initialized() else 0


def _initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def unwrapped(model: nn.Module) -> nn.Module:
    """Returns the model itself, where DistributedDataParallel holds it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def sum_over_ranks(tensor: Tensor) -> None:
    """Replace a tensor, in place, by its sum over all processes."""
    if num_ranks() > 1:
        dist.all_reduce(tensor)


def from_first_rank(number: int, device: torch.device) -> int:
    """Returns the number that process 0 gives. All processes call it.

    Args:
        device: one that the processes' backend can send from.
    """
    if num_ranks() == 1:
        return number
    sent = torch.tensor(number, device=device)
    dist.broadcast(sent, 0)
    return int(sent)


def keep_own_share(tensor: Tensor) -> None:
    """Leave a tensor as it is: takes the place of :func:`sum_over_ranks` where one process trains alone."""
