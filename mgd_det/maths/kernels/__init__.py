"""Compute absolute max pooling of the teacher and the student's distance to it in one call.

`eager.py` is plain PyTorch, runs anywhere and defines the result. `cuda.py` is written in Triton and reads
every value once. At its first use in a process it is compared with `eager.py` on small inputs; if it fails,
a warning is logged and `eager.py` takes its place.
"""

from __future__ import annotations

import functools
import importlib
import logging
from typing import Protocol

import torch
from torch import Tensor

from . import eager

logger = logging.getLogger(__name__)


class Kernel(Protocol):
    """An implementation of :func:`pooled_difference`."""

    def __call__(
        self,
        student: Tensor,
        teacher: Tensor,
        members: Tensor,
        margin: Tensor,
        mask: Tensor | None,
        keep: bool,
    ) -> tuple[Tensor, Tensor | None]: ...


@torch.no_grad()
def pooled_difference(
    student: Tensor, teacher: Tensor, members: Tensor, margin: Tensor, mask: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the student's distance to the pooled teacher, with 0 where it does not count.

    Elements that the mask or :func:`mgd_det.losses.partial_l2` leaves out do not count.

    Args:
        student: (N, Cs, H, W), float32 or float64, any strides.
        teacher: (N, Ct, H, W), any float dtype and strides.
        members: (Cs, G) teacher channels, no padding.
        margin: (Cs,), any float dtype.
        mask: (N, 1, H, W) bool, True at the positions that count; None if all do.
        keep: whether the distances are returned.

    Returns:
        The sum of squares, a scalar; and the distances, (N, Cs, H, W), or None unless `keep`. Both are in the
        student's dtype.
    """
    on_gpu = student.device.type == "cuda"
    kernel = (triton_kernel(student.dtype, teacher.dtype) if on_gpu else None) or eager.pooled_difference
    return kernel(student, teacher, members, margin, mask, keep)


@functools.cache
def triton_kernel(student: torch.dtype, teacher: torch.dtype) -> Kernel | None:
    """Return the Triton kernel for these dtypes, or None if it does not work here."""
    try:
        module = importlib.import_module(".cuda", __name__)
        if not module.supports(student, teacher):
            return None
        check(module.pooled_difference, "cuda", student, teacher)
    except Exception as error:  # A compiler, a driver or a loader may raise anything.
        logger.warning(
            "No fused loss on cuda (%s); plain torch takes its place: the same numbers, slower.", error
        )
        return None
    return module.pooled_difference


def check(kernel: Kernel, device: str, student: torch.dtype, teacher: torch.dtype) -> None:
    """Compare a kernel with plain PyTorch on small inputs.

    The inputs are in either memory order, or in rows with gaps between them; each with a mask, and without
    a mask and distances. They are few, since a compiler may take a second for each.

    Raises:
        AssertionError: the results differ.
    """
    values = torch.arange(-330.0, 330.0, device=device)
    s = values[: 2 * 3 * 35].mul(0.37).sin().reshape(2, 3, 5, 7).to(student)
    t = values.mul(0.71).cos()[: 2 * 9 * 35].reshape(2, 9, 5, 7).to(teacher)
    members = torch.tensor([[4, 0, 7], [8, 1, 3], [2, 2, 5]], device=device)
    margin = torch.tensor([-0.1, -0.5, 0.2], dtype=student, device=device)
    mask = torch.ones(2, 1, 5, 7, dtype=torch.bool, device=device)
    mask[1, :, 3:] = False
    last = torch.channels_last
    layouts = ((s, t), (s.to(memory_format=last), t.to(memory_format=last)), (s[..., :6], t[..., :6]))
    for student_map, teacher_map in layouts:
        for counts, keep in ((mask[..., : student_map.shape[3]], True), (None, False)):
            arguments = (student_map, teacher_map, members, margin, counts, keep)
            found, expected = (one(*arguments) for one in (kernel, eager.pooled_difference))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
