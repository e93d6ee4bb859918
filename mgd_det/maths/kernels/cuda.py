"""Compute the pooled difference on CUDA, in Triton, which PyTorch's CUDA builds contain."""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 1024  # values that one program handles
FLOATS = (torch.float32, torch.float64)


def supports(student: torch.dtype, teacher: torch.dtype) -> bool:
    """Return whether the kernel is written for these dtypes."""
    return student in FLOATS and teacher in (*FLOATS, torch.float16, torch.bfloat16)


@triton.jit
@no_type_check
def _kernel(
    student,
    teacher,
    members,
    margin,
    mask,
    difference,
    sums,
    channels,
    group,
    width,
    positions,
    student_n,
    student_c,
    student_y,
    student_x,
    teacher_n,
    teacher_c,
    teacher_y,
    teacher_x,
    difference_n,
    difference_c,
    difference_y,
    difference_x,
    MASKED: tl.constexpr,
    KEEP: tl.constexpr,
    DENSE: tl.constexpr,
    CHANNELS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """Handle a tile of channels by positions of one image; its sum of squares has an entry of its own."""
    n = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    p = tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)[None, :]
    if DENSE:  # Rows without gaps are one long row, of which several values are read at a time.
        y, x = 0, p
    else:
        y, x = p // width, p % width
    inside = (c < channels) & (p < positions)
    s = tl.load(
        student + n * student_n + c * student_c + y * student_y + x * student_x, mask=inside, other=0.0
    )
    at = teacher + n * teacher_n + y * teacher_y + x * teacher_x
    member = tl.load(members + c * group, mask=c < channels, other=0)
    pooled = tl.load(at + member * teacher_c, mask=inside, other=0.0)
    for g in range(1, group):
        member = tl.load(members + c * group + g, mask=c < channels, other=0)
        candidate = tl.load(at + member * teacher_c, mask=inside, other=0.0)
        pooled = tl.where(tl.abs(candidate) > tl.abs(pooled), candidate, pooled)
    target = pooled.to(s.dtype)
    floor = tl.load(margin + c, mask=c < channels, other=0.0)
    target = tl.where((target > floor) | (target != target), target, floor)  # A NaN counts.
    active = inside & (((s <= target) & (target <= 0)) == 0)
    if MASKED:
        active = active & (tl.load(mask + n * positions + p, mask=p < positions, other=0) != 0)
    d = tl.where(active, s - target, 0.0)
    if KEEP:
        to = difference + n * difference_n + c * difference_c + y * difference_y + x * difference_x
        tl.store(to, d, mask=inside)
    tiles = tl.num_programs(0) * tl.num_programs(1)
    entry = n * tiles + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(sums + entry, tl.sum(d * d))


def pooled_difference(
    student: Tensor, teacher: Tensor, members: Tensor, margin: Tensor, mask: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute :func:`mgd_det.maths.kernels.pooled_difference` for the dtypes of :func:`supports`."""
    n, c, h, w = student.shape
    difference = torch.empty_like(student)  # Unless `keep`, only its strides are used.
    members, margin = members.contiguous(), margin.to(student.dtype).contiguous()
    # A tile extends along the dimension that is contiguous in memory: channels, or positions.
    tile_c = min(triton.next_power_of_2(c), 64) if teacher.stride(1) == 1 else 1
    tile_p = TILE // tile_c
    dense = all(x.stride(2) == w * x.stride(3) for x in (student, teacher, difference))
    grid = (triton.cdiv(h * w, tile_p), triton.cdiv(c, tile_c), n)
    sums = torch.empty(grid, dtype=student.dtype, device=student.device)
    counts = student if mask is None else mask.expand(n, 1, h, w).contiguous().view(torch.uint8)
    with torch.cuda.device_of(student):
        _kernel[grid](
            student,
            teacher,
            members,
            margin,
            counts,
            difference,
            sums,
            c,
            members.shape[1],
            w,
            h * w,
            *student.stride(),
            *teacher.stride(),
            *difference.stride(),
            MASKED=mask is not None,
            KEEP=keep,
            DENSE=dense,
            CHANNELS=tile_c,
            POSITIONS=tile_p,
        )
    return sums.sum(dtype=torch.float64).to(student.dtype), difference if keep else None
