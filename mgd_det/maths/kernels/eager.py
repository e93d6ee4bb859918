"""Compute the pooled difference in plain PyTorch, on any device; the Triton kernel is compared with it."""

from __future__ import annotations

import torch
from torch import Tensor

# The number of elements of a block on the CPU. Its few temporaries fit the second-level cache.
CPU_BLOCK = 1 << 18

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # integer dtypes by their size in bytes


def pooled_difference(
    student: Tensor, teacher: Tensor, members: Tensor, margin: Tensor, mask: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`mgd_det.maths.kernels.pooled_difference` on any device, for any float dtypes."""
    n, c, h, w = student.shape
    difference = torch.empty_like(student) if keep else None
    total = student.new_zeros(())
    if teacher.device.type == "cpu":
        # Whole channels are picked below, which takes several times as long in channels_last order.
        teacher = teacher.contiguous()
    # On other devices than the CPU a launch costs more than a large temporary.
    images, channels = (1, max(CPU_BLOCK // max(h * w, 1), 1)) if student.device.type == "cpu" else (n, c)
    for i in range(0, n, images):
        for j in range(0, c, channels):
            block = slice(i, i + images), slice(j, j + channels)
            target = pooled(teacher[block[0]], members[block[1]]).to(student.dtype)
            target = torch.maximum(target, margin[block[1], None, None])
            inactive = (student[block] <= target).logical_and_(target <= 0)  # A NaN counts.
            if mask is not None:
                inactive |= ~mask[block[0]]
            # A product would turn infinities at positions that do not count into NaN.
            part = torch.sub(student[block], target).masked_fill_(inactive, 0)
            total += part.square().sum()
            if difference is not None:
                difference[block] = part
    return total, difference


def pooled(teacher: Tensor, members: Tensor) -> Tensor:
    """Compute :func:`mgd_det.reducers.absolute_max` for groups without padding.

    Args:
        teacher: (N, Ct, H, W), any float dtype.
        members: (C, G) teacher channels.

    Returns:
        (N, C, H, W) in the teacher's dtype.
    """
    integers = INTEGERS[teacher.element_size()]
    target = teacher.index_select(1, members[:, 0])
    bits = target.view(integers)
    for column in members.T[1:]:
        candidate = teacher.index_select(1, column)
        # On the CPU, torch.where takes several times as long as choosing by bits.
        larger = (candidate.abs() > target.abs()).to(integers).neg_()  # It has all bits set, or none.
        bits ^= (candidate.view(integers) ^ bits) & larger
    return target
