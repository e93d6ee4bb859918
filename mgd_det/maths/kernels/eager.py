"""The pooled difference in plain torch, which runs anywhere; the others are held against it."""

from __future__ import annotations

import torch
from torch import Tensor

# Elements of a block on the CPU: its few temporaries stay in the second-level cache.
CPU_BLOCK = 1 << 18

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def pooled_difference(
    student: Tensor, teacher: Tensor, members: Tensor, margin: Tensor, mask: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """As :func:`mgd_det.maths.kernels.pooled_difference`, for any device and any float dtypes."""
    n, c, h, w = student.shape
    difference = torch.empty_like(student) if keep else None
    total = student.new_zeros(())
    # Elsewhere than on the CPU a launch costs more than a temporary.
    images, channels = (1, max(CPU_BLOCK // max(h * w, 1), 1)) if student.device.type == "cpu" else (n, c)
    for i in range(0, n, images):
        for j in range(0, c, channels):
            block = slice(i, i + images), slice(j, j + channels)
            target = pooled(teacher[block[0]], members[block[1]]).to(student.dtype)
            target = torch.maximum(target, margin[block[1], None, None])
            inactive = (student[block] <= target).logical_and_(target <= 0)  # False for a NaN, which counts
            if mask is not None:
                inactive |= ~mask[block[0]]
            # Filled rather than multiplied, so that infinities at such positions do not become NaN.
            part = torch.sub(student[block], target).masked_fill_(inactive, 0)
            total += part.square().sum()
            if difference is not None:
                difference[block] = part
    return total, difference


def pooled(teacher: Tensor, members: Tensor) -> Tensor:
    """As :func:`mgd_det.reducers.absolute_max` with `members` (C, G), for groups without padding."""
    integers = INTEGERS[teacher.element_size()]
    target = teacher.index_select(1, members[:, 0])
    bits = target.view(integers)
    for column in members.T[1:]:
        candidate = teacher.index_select(1, column)
        # Bits rather than torch.where, which takes several times as long on the CPU.
        larger = (candidate.abs() > target.abs()).to(integers).neg_()  # all bits set, or none
        bits ^= (candidate.view(integers) ^ bits) & larger
    return target
