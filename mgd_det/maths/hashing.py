"""Feature mimicking with a locality-sensitive hashing loss.

Pure functions on tensors, no Detectron2. Source: "Distilling Knowledge by Mimicking Features" (Wang, Ge,
Wu; TPAMI 2022; arXiv 2011.01424). Hashing asks for the teacher's direction and leaves the length free;
it diverges easily without the squared error beside it. Shapes: M feature vectors of length D, K hashes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_ELEMENTS = 2**22  # of (rows, K) that are held at a time: 1024 rows at K 4096, 16 MiB in float32


def projection(num_hashes: int, length: int, std: float, seed: int) -> Tensor:
    """The frozen random directions to hash along, the same in every process.

    Args:
        num_hashes: K.
        length: D.
        std: standard deviation of the entries; the paper takes that of the weights of the teacher's
            classification layer.
        seed: of a generator of its own, so that nothing else that is drawn changes.

    Returns:
        (K, D) float32 on the CPU, drawn from Normal(0, std).
    """
    return std * torch.randn((num_hashes, length), generator=torch.Generator().manual_seed(seed))


def hashing_loss(
    student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Cross entropy of the student's projections against the teacher's hash bits.

    The bits are `1[W t + b > 0]`, the student's logits `W s + b`; the mean is over hashes and rows.
    Memory beyond that of the features is bounded by `CHUNK_ELEMENTS`, not by M * K.

    Args:
        student: (M, D), any float dtype; the loss is computed in float32 or wider, under autocast too.
        teacher: (M, D); no gradient flows into it, nor into weight and bias.
        weight, bias: (K, D) and (K,); a :func:`projection`, and zeros in the paper's detection settings.
        mask: (M,), True at the rows that count; None for all.

    Returns:
        Scalar; zero, in the student's graph, where no row counts. Differentiable once.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_rows(student, teacher, mask)
    if weight.shape[1:] != student.shape[1:] or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not project rows of length "
            f"{student.shape[1]}: they must be (K, {student.shape[1]}) and (K,)"
        )
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    with torch.autocast(student.device.type, enabled=False):
        total: Tensor = _SummedCrossEntropy.apply(student, teacher, weight, bias)
    return total / max(len(student) * len(weight), 1)


class _SummedCrossEntropy(torch.autograd.Function):
    """Sum over rows and hashes, in chunks of rows.

    The gradient, `(sigmoid(W s + b) - bits) W`, is taken in the forward pass, while a chunk's projections
    are at hand: kept, they are K / D times the features; computed again, they cost as much as before.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        weight, bias = weight.to(dtype), bias.to(dtype)
        total = weight.new_zeros(())
        # Not in the features' dtype: float16 would overflow here, or underflow once divided by M * K.
        gradient = torch.empty(student.shape, dtype=dtype, device=student.device)
        rows = max(CHUNK_ELEMENTS // max(len(weight), 1), 1)
        for s, t, g in zip(student.split(rows), teacher.split(rows), gradient.split(rows)):
            bits = (F.linear(t.to(dtype), weight, bias) > 0).to(dtype)
            logits = F.linear(s.to(dtype), weight, bias)
            total += F.binary_cross_entropy_with_logits(logits, bits, reduction="sum")
            torch.mm(logits.sigmoid_().sub_(bits), weight, out=g)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None


def mimicking_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared error over the elements of the rows that count.

    Args:
        student: (M, D), any float dtype; the loss is computed in float32 or wider.
        teacher: (M, D); no gradient flows into it.
        mask: (M,), True at the rows that count; None for all.

    Returns:
        Scalar; zero, in the student's graph, where no row counts.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_rows(student, teacher, mask)
    dtype = torch.promote_types(student.dtype, torch.float32)
    difference = student.to(dtype) - teacher.detach().to(dtype)
    if mask is None:
        return difference.square().sum() / max(difference.numel(), 1)
    # `where` rather than a product, so that NaN in rows that do not count does not reach the sum.
    difference = torch.where(mask[:, None], difference, 0.0)
    return difference.square().sum() / (mask.sum() * student.shape[1]).clamp_min(1)


def neighbourhoods(features: Tensor, kernel: int) -> Tensor:
    """The kernel x kernel neighbourhood of every position as a vector, zeros beyond the border.

    Args:
        features: (N, C, H, W).
        kernel: odd.

    Returns:
        (N * H * W, C * kernel * kernel): rows in the order n, y, x; elements in the order c, dy, dx, as
        in a convolution's weight, so that a projection of the rows is a convolution of the features.

    Raises:
        ValueError: features are not four-dimensional, or kernel is not odd.
    """
    if features.dim() != 4 or kernel < 1 or kernel % 2 == 0:
        raise ValueError(
            f"takes (N, C, H, W) features and an odd kernel, got {tuple(features.shape)} and {kernel}"
        )
    if kernel == 1:
        return features.permute(0, 2, 3, 1).flatten(0, 2)
    return F.unfold(features, kernel, padding=kernel // 2).transpose(1, 2).flatten(0, 1)


def _check_rows(student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape (M, D)"
        )
    if mask is not None and mask.shape != student.shape[:1]:
        raise ValueError(f"mask {tuple(mask.shape)} must be ({len(student)},), one for each row")
