"""The partial L2 loss, and absolute max pooling with it in one call.

Pure functions on tensors, no Detectron2. Source: Matching Guided Distillation (ECCV 2020), eq. 6, after
Heo et al. (ICCV 2019), eq. 3. The student's norm layer is applied by the caller.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .kernels import pooled_difference
from .matching import check_positions, group_members


def partial_l2(
    student: Tensor, target: Tensor, margin: Tensor, reduction: str, mask: Tensor | None = None
) -> Tensor:
    """Squared distance to the target where it matters after the ReLU.

    With `t' = max(target, margin)`, an element counts `(student - t')^2` where `student > t'` or
    `t' > 0`, and nothing elsewhere: there both sides are negative and the student is low enough.

    Args:
        student: (N, C, H, W), any float dtype; the loss is computed in float32 or wider.
        target: (N, C, H, W), the reduced teacher features; no gradient flows into them.
        margin: (C,), of the reduced features.
        reduction: "sum", or "mean" over all unpadded elements, the inactive ones included.
        mask: (N, H, W) or (N, 1, H, W), True at the unpadded positions; None for all.

    Returns:
        Scalar.

    Raises:
        ValueError: unknown reduction, or student and target differ in shape.
    """
    _check_reduction(reduction)
    if student.shape != target.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and target {tuple(target.shape)} must have one shape"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    student = student.to(dtype)
    target = torch.maximum(target.detach().to(dtype), margin.to(dtype)[:, None, None])
    # Spelled as "not inactive", so that a NaN counts and stops the training rather than hides.
    active = ~((student <= target) & (target <= 0))
    if mask is not None:
        mask = mask.reshape(len(mask), 1, *mask.shape[-2:])
        active = active & mask
    # `where` rather than a product, so that infinities at inactive positions do not become NaN.
    difference = torch.where(active, student - target, torch.zeros((), dtype=dtype, device=student.device))
    total = difference.square().sum()
    return total if reduction == "sum" else total / _count(student, mask)


def pooled_partial_l2(
    student: Tensor,
    teacher: Tensor,
    groups: Tensor,
    margin: Tensor,
    reduction: str,
    mask: Tensor | None = None,
) -> Tensor:
    """:func:`reducers.absolute_max` of the teacher and :func:`partial_l2` in one; what training uses.

    Reads every value once, where `kernels` has the means, and keeps one tensor of the student's size for the
    backward pass. Differentiable once.

    Args:
        student: (N, Cs, H, W).
        teacher: (N, Ct, H, W).
        groups: (Cs, G) teacher channels, -1 at the end of a short group.
        margin: (Cs,), already reduced over the groups.
        reduction, mask: as in :func:`partial_l2`.

    Returns:
        Scalar, equal to the two in sequence.

    Raises:
        ValueError: as :func:`partial_l2`; or the sizes of the arguments do not fit each other.
    """
    _check_reduction(reduction)
    check_positions(student, teacher)
    channels, height, width = student.shape[1:]
    if len(groups) != channels or margin.shape != (channels,):
        raise ValueError(
            f"{channels} student channels need as many groups and margins, "
            f"got {len(groups)} and {tuple(margin.shape)}"
        )
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    if mask is not None:
        mask = mask.reshape(len(mask), 1, height, width)
    members = group_members(groups)
    total = _PooledPartialL2.apply(student, teacher.detach(), members, margin.to(student.dtype), mask)
    return total if reduction == "sum" else total / _count(student, mask)


class _PooledPartialL2(torch.autograd.Function):
    """The sum; its gradient is twice the distance, which is all that is kept."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, members: Tensor, margin: Tensor, mask: Tensor | None
    ) -> Tensor:
        keep = ctx.needs_input_grad[0]
        total, difference = pooled_difference(student, teacher, members, margin, mask, keep)
        if keep:
            ctx.save_for_backward(difference)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return difference * (2 * gradient), None, None, None, None


def _check_reduction(reduction: str) -> None:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")


def _count(student: Tensor, mask: Tensor | None) -> Tensor | int:
    """Elements at the positions that count."""
    return student.numel() if mask is None else mask.sum() * student.shape[1]
