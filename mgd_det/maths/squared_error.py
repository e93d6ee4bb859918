"""The mean squared error over the positions that count. The functions are pure."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_squared_error(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """Compute the mean squared error over channels and unpadded positions.

    Args:
        student: (N, C, H, W), any float dtype; the loss is computed in float32 or wider.
        teacher: (N, C, H, W).
        mask: (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.
        weight: (N, 1, H, W), by which a position counts, at least 0; None if all count alike.

    Returns:
        Scalar: the weighted mean, 0 where no position counts.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    difference = student.to(dtype) - teacher.to(dtype)
    if mask is not None:
        difference = torch.where(mask, difference, 0.0)
    errors = difference.square().mean(1, keepdim=True)
    counts = torch.ones_like(errors) if weight is None else weight.to(dtype)
    if mask is not None:
        counts = counts * mask
    return (errors * counts).sum() / counts.sum().clamp_min(torch.finfo(dtype).tiny)
