"""What code that runs in one of several processes needs of the others."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


def unwrapped(model: Any) -> Any:
    """The model itself, where DistributedDataParallel holds it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def sum_over_ranks(tensor: Tensor) -> None:
    """Replace a tensor, in place, by its sum over all processes."""
    if comm.get_world_size() > 1:
        dist.all_reduce(tensor)
