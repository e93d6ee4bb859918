"""Compute the losses of feature mimicking: a locality-sensitive hashing loss and a squared error.

The functions are pure and know nothing of Detectron2. They follow "Distilling Knowledge by Mimicking
Features" (Wang, Ge, Wu; TPAMI 2022; arXiv 2011.01424). Hashing asks for the teacher's direction and leaves
the length free; it diverges easily without the squared error. In the shapes, M is the number of feature
vectors, D is their length and K is the number of hashes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction, once_differentiable
from torch.nn import functional as F

# Elements of (rows, K) held at a time, on a CPU as many as its caches hold: 256 rows at K = 4096, or 4 MiB.
CHUNK_ELEMENTS = 2**20
GPU_CHUNK_ELEMENTS = 2**22  # larger ones keep a GPU busy


def projection(num_hashes: int, length: int, std: float, seed: int) -> Tensor:
    """Draw the frozen random directions to hash along, the same ones in every process.

    Args:
        num_hashes: K.
        length: D.
        std: standard deviation of the entries; the paper takes that of the weights of the teacher's
            classification layer.
        seed: seed of the function's own generator; torch's global one is left alone.

    Returns:
        (K, D) float32 on the CPU, drawn from Normal(0, std).
    """
    return std * torch.randn((num_hashes, length), generator=torch.Generator().manual_seed(seed))


def hashing_loss(
    student: Tensor,
    teacher: Tensor,
    weight: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the cross entropy of the student's projections against the teacher's hash bits.

    The bits are `1[W t + b > 0]` and the student's logits are `W s + b`; the mean is over hashes and rows.
    Memory beyond that of the features is bounded by the chunks in which it is computed, not by M * K.

    Args:
        student: (M, D), any float dtype; the loss is computed in float32 or wider, under autocast too.
        teacher: (M, D), any float dtype; no gradient flows into it, nor into weight and bias.
        weight: (K, D), a :func:`projection`.
        bias: (K,), zeros in the paper's detection settings.
        mask: (M,) bool, True at the rows that count; None if all do.
        product_dtype: dtype of the matrix products alone, such as that of :func:`fast_product_dtype`; None
            computes them as the rest.

    Returns:
        Scalar, differentiable once. It is zero, and in the student's graph, if no row counts.

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
        total: Tensor = _SummedCrossEntropy.apply(student, teacher, weight, bias, product_dtype)
    return total / max(len(student) * len(weight), 1)


def fast_product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype in which to multiply matrices of a dtype: bfloat16 for float32 where that is fast.

    These are GPUs from NVIDIA's Ampere on and CPUs with AVX-512. (Those of them without instructions for
    bfloat16 take as long for it as for float32.)
    """
    if dtype is not torch.float32:
        return dtype
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        widest = torch.backends.cpu.get_cpu_capability()
        fast = device.type == "cpu" and widest == "AVX512" and torch.backends.mkldnn.is_available()
    return torch.bfloat16 if fast else dtype


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum over rows and hashes, computed in chunks of rows.

    The gradient, `(sigmoid(W s + b) - bits) W`, is computed in the forward pass, while a chunk's projections
    are there. To keep them would take K / D times the memory of the features, and to compute them again would
    double the time.
    """

    @staticmethod
    def forward(
        ctx: BackwardCFunction,
        student: Tensor,
        teacher: Tensor,
        weight: Tensor,
        bias: Tensor,
        product_dtype: torch.dtype | None,
    ) -> Tensor:
        dtype = torch.promote_types(student.dtype, torch.float32)
        low = product_dtype or dtype
        weight, bias = weight.to(low), bias.to(low)
        total = torch.zeros((), dtype=dtype, device=student.device)
        # In float16 the gradient would overflow here, or underflow once it is divided by M * K.
        gradient = torch.empty(student.shape, dtype=dtype, device=student.device)
        elements = CHUNK_ELEMENTS if student.device.type == "cpu" else GPU_CHUNK_ELEMENTS
        rows = max(elements // max(len(weight), 1), 1)
        for s, t, g in zip(student.split(rows), teacher.split(rows), gradient.split(rows)):
            # A CPU compares wide numbers faster.
            bits = (F.linear(t.to(low), weight, bias).to(dtype) > 0).to(dtype)
            logits = F.linear(s.to(low), weight, bias).to(dtype)
            total += F.binary_cross_entropy_with_logits(logits, bits, reduction="sum")
            g.copy_(torch.mm(logits.sigmoid_().sub_(bits).to(low), weight))
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None, None


def mimicking_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute the mean squared error over the elements of the rows that count.

    Args:
        student: (M, D), any float dtype; the loss is computed in float32 or wider.
        teacher: (M, D), any float dtype; no gradient flows into it.
        mask: (M,) bool, True at the rows that count; None if all do.

    Returns:
        Scalar. It is zero, and in the student's graph, if no row counts.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    _check_rows(student, teacher, mask)
    dtype = torch.promote_types(student.dtype, torch.float32)
    difference = student.to(dtype) - teacher.detach().to(dtype)
    if mask is None:
        return difference.square().sum() / max(difference.numel(), 1)
    # A product would let NaN in the rows that do not count through.
    difference = torch.where(mask[:, None], difference, 0.0)
    return difference.square().sum() / (mask.sum() * student.shape[1]).clamp_min(1)


def neighbourhoods(features: Tensor, kernel: int) -> Tensor:
    """Return the kernel x kernel neighbourhood of every position as a vector, with zeros beyond the border.

    Args:
        features: (N, C, H, W), any float dtype.
        kernel: size of the neighbourhood, odd.

    Returns:
        (N * H * W, C * kernel * kernel), in the features' dtype. The rows are in the order n, y, x and their
        elements in the order c, dy, dx, that of a convolution's weight, so that a projection of the rows
        is a convolution of the features.

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
    """Raise a ValueError unless student and teacher are (M, D) and the mask, if any, is (M,)."""
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape (M, D)"
        )
    if mask is not None and mask.shape != student.shape[:1]:
        raise ValueError(f"mask {tuple(mask.shape)} must be ({len(student)},), one for each row")
