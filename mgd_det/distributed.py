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
    """Replace a tensor, on any device, in place by its sum over all processes."""
    if num_ranks() > 1:
        sent = tensor.to(sending_device(tensor.device, dist.get_backend()))
        dist.all_reduce(sent)
        tensor.copy_(sent)


def mean_over_ranks(tensor: Tensor) -> None:
    """Replace a tensor, on any device, in place by its mean over all processes.

    A number that is equal in all of them stays as it is. The quotient of a sum of equal numbers need not.
    """
    if num_ranks() == 1:
        return
    own = tensor.to(sending_device(tensor.device, dist.get_backend()))
    first = own.clone()
    dist.broadcast(first, 0)
    beyond_first = torch.where(own == first, 0, own - first)  # equal infinities have no difference
    dist.all_reduce(beyond_first)
    tensor.copy_(first + beyond_first / num_ranks())


def from_first_rank(number: int) -> int:
    """Returns the number that process 0 gives. All processes call it."""
    if num_ranks() == 1:
        return number
    sent = torch.tensor(number, device=sending_device(torch.device("cpu"), dist.get_backend()))
    dist.broadcast(sent, 0)
    return int(sent)


def sending_device(device: torch.device, backend: str) -> torch.device:
    """Returns the device that a tensor of another one has to be on for a backend to send it.

    NCCL, which Detectron2 uses on GPUs, sends from GPUs alone; each process has set the one that is its own.
    """
    return torch.device("cuda") if backend == "nccl" and device.type == "cpu" else device


def keep_own_share(tensor: Tensor) -> None:
    """Leave a tensor as it is: takes the place of :func:`sum_over_ranks` where one process trains alone."""
