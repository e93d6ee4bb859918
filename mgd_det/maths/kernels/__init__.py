"""Absolute max pooling of the teacher and the student's distance to it, in one go; no Detectron2.

`eager.py` is plain torch and defines the result. `native.py` (CPU, needs a C compiler) and `cuda.py` (CUDA,
needs Triton) read every value once. They are tried at their first use on a small case with a known answer,
and left alone, with one warning, where they fail.
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType

import torch
from torch import Tensor

from . import eager

logger = logging.getLogger(__name__)
FUSED = {"cpu": "native", "cuda": "cuda"}


@torch.no_grad()
def pooled_difference(
    student: Tensor, teacher: Tensor, members: Tensor, margin: Tensor, mask: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The student's distance to the pooled target, 0 where :func:`mgd_det.losses.partial_l2` counts nothing.

    Args:
        student: (N, Cs, H, W), float32 or float64, any strides.
        teacher: (N, Ct, H, W), any float dtype and strides.
        members: (Cs, G) teacher channels, no padding.
        margin: (Cs,).
        mask: (N, 1, H, W) bool, True at the positions that count; None: all do.
        keep: whether the distances are needed, or their sum of squares alone.

    Returns:
        The sum of squares, a scalar, and the distances, (N, Cs, H, W), or None; both in the student's dtype.
    """
    module = fused(student.device.type, student.dtype, teacher.dtype) or eager
    return module.pooled_difference(student, teacher, members, margin, mask, keep)


@functools.cache
def fused(device: str, student: torch.dtype, teacher: torch.dtype) -> ModuleType | None:
    """The implementation that reads every value once, where there is one that works here."""
    if device not in FUSED:
        return None
    try:
        module = importlib.import_module(f".{FUSED[device]}", __name__)
        if not module.supports(student, teacher):
            return None
        check(module, device, student, teacher)
    except Exception as error:  # whatever a compiler, a driver or a loader may raise
        logger.warning(
            "No fused loss on %s (%s); plain torch takes its place: the same numbers, slower.", device, error
        )
        return None
    return module


def check(module: ModuleType, device: str, student: torch.dtype, teacher: torch.dtype) -> None:
    """Raise an AssertionError unless the module agrees with plain torch on a small case of each kind.

    Those are both memory orders, and rows with gaps between them; each with a mask, and without one and
    without distances: few, since a compiler may take a second for each.
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
            ours, expected = (one.pooled_difference(*arguments) for one in (module, eager))
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
