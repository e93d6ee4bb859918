"""Compute the partial L2 loss, by itself or together with absolute max pooling.

The functions are pure and know nothing of Detectron2. They follow Matching Guided Distillation (ECCV 2020),
eq. 6, after Heo et al. (ICCV 2019), eq. 3. The caller applies the student's norm layer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable

from .kernels import pooled_difference
from .matching import check_positions, group_members
from .shapes import check_one_shape


def partial_l2(
    student: Tensor, target: Tensor, margin: Tensor, reduction: str, mask: Tensor | None = None
) -> Tensor:
    """Compute the squared distance to the target at the elements that matter after the ReLU.

    With `t' = max(target, margin)`, an element counts `(student - t')^2` if `student > t'` or `t' > 0`, and
    nothing otherwise: then both are negative and the student is low enough.

    Args:
        student: (N, C, H, W), any float dtype; the loss is computed in float32 or wider.
        target: (N, C, H, W), the pooled teacher features; no gradient flows into them.
        margin: (C,), margins of the pooled features.
        reduction: "sum", or "mean" over all unpadded elements, including those that count nothing.
        mask: (N, H, W) or (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.

    Returns:
        Scalar.

    Raises:
        ValueError: the reduction is unknown, or student and target differ in shape.
    """
    _check_reduction(reduction)
    check_one_shape(student, target, "target")
    dtype = torch.promote_types(student.dtype, torch.float32)
    student = student.to(dtype)
    target = torch.maximum(target.detach().to(dtype), margin.to(dtype)[:, None, None])
    # The negation lets a NaN count, so that it stops the training.
    active = ~((student <= target) & (target <= 0))
    if mask is not None:
        mask = mask.reshape(len(mask), 1, *mask.shape[-2:])
        active = active & mask
    # A product would turn infinities at positions that do not count into NaN.
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
    """Compute :func:`mgd_det.reducers.absolute_max` of the teacher and :func:`partial_l2` in one.

    Training uses this function. It keeps one tensor of the student's size for the backward pass, and on a GPU
    it reads every value once.

    Args:
        student: (N, Cs, H, W), any float dtype; the loss is computed in float32 or wider.
        teacher: (N, Ct, H, W), any float dtype; no gradient flows into it.
        groups: (Cs, G) teacher channels, -1 at the end of a short group.
        margin: (Cs,), margins of the pooled features.
        reduction, mask: as in :func:`partial_l2`.

    Returns:
        Scalar, equal to that of the two in sequence. Differentiable once.

    Raises:
        ValueError: the reduction is unknown, or the sizes of the arguments do not fit each other.
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
    """The sum of squares, which keeps the distances alone: its gradient is twice the distance."""

    @staticmethod
    def forward(
        ctx: BackwardCFunction,
        student: Tensor,
        teacher: Tensor,
        members: Tensor,
        margin: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        keep = ctx.needs_input_grad[0]
        total, difference = pooled_difference(student, teacher, members, margin, mask, keep)
        if difference is not None:
            ctx.save_for_backward(difference)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (difference,) = ctx.saved_tensors
        return difference * (2 * gradient), None, None, None, None


def _check_reduction(reduction: str) -> None:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")


def _count(student: Tensor, mask: Tensor | None) -> Tensor | int:
    """Return the number of elements at the positions that count."""
    return student.numel() if mask is None else mask.sum() * student.shape[1]
