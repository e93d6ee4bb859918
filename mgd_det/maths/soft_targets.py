"""Losses on a detector's predictions, with the teacher's predictions as soft targets.

Pure functions on tensors, no Detectron2. All are computed in float32 or wider, hand no gradient to the
teacher, and are zero, in the student's graph, where there is nothing to learn from. Shapes: M dense
predictions, R regions of interest, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_NORMALIZER = 1.0  # what a sum over predictions is divided by at least: images may hold no object


def sigmoid_soft_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, gamma: float = 2.0
) -> Tensor:
    """Cross entropy of dense classification, an element weighing more the further the student is off.

    An element counts `|sigmoid(s) - sigmoid(t)|^gamma * (BCE(s, sigmoid(t)) - entropy(sigmoid(t)))`:
    quality focal loss (Li et al., "Generalized Focal Loss", NeurIPS 2020, eq. 5), with the teacher's
    probability as the quality of every class, and two changes. The weight is a constant in the gradient,
    and the entropy, another constant there, is taken off, so that agreement costs nothing. The sum is
    divided by a soft number of foreground rows, the sum of :func:`sureness`.

    Args:
        student, teacher: (M, K) logits, any float dtype.
        mask: (M,), True at the rows that count; None for all.
        gamma: exponent of the weight; 0 weighs all elements alike.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    student, teacher = _wide_rows(student, teacher)
    _check_one_for_each_row(mask, "mask", student)
    if mask is not None:
        # Two equal logits count nothing; `where` keeps NaN out, which a product would let through.
        student, teacher = (torch.where(mask[:, None], x, 0.0) for x in (student, teacher))
    divergence = _divergence(student, teacher)
    weight = (student.detach().sigmoid() - teacher.sigmoid()).abs().pow(gamma)
    foreground = sureness(teacher)
    if mask is not None:
        foreground = torch.where(mask, foreground, 0.0)
    return (weight * divergence).sum() / foreground.sum().clamp_min(MIN_NORMALIZER)


def sureness(logits: Tensor) -> Tensor:
    """How much of an object each row of a sigmoid classifier is: its largest probability, squared.

    Squared, since a hundred thousand background rows of 0.01 would otherwise count for more than all objects.

    Args:
        logits: (M, K).

    Returns:
        (M,) in [0, 1], float32 or wider.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.sigmoid().amax(1).square()


def softmax_soft_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Divergence of the class distributions of regions, softened by a temperature; mean over regions.

    `T^2 KL(softmax(t / T) || softmax(s / T))` (Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network", 2015, section 2); T^2 keeps the size of the gradient over temperatures.

    Args:
        student, teacher: (R, K + 1) logits, any float dtype.
        temperature: T, over 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    student, teacher = _wide_rows(student, teacher)
    divergence = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="sum",
        log_target=True,
    )
    return temperature**2 * divergence / max(len(student), 1)


def weighted_box_loss(student: Tensor, teacher: Tensor, weight: Tensor, beta: float = 0.0) -> Tensor:
    """Smooth L1 distance of box predictions, summed over the four, averaged by weight over the rows.

    Args:
        student, teacher: (M, 4), any float dtype.
        weight: (M,), at least 0, of the rows; no gradient flows into it. Where it is 0, the row may hold
            anything, NaN too.
        beta: distance at which the squared error goes over into L1, as in
            `torch.nn.functional.smooth_l1_loss`; 0 is plain L1.

    Returns:
        Scalar: the weighted sum over the sum of the weights, or over 1 where that is less.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    student, teacher = _wide_rows(student, teacher)
    _check_one_for_each_row(weight, "weight", student)
    weight = weight.detach().to(student.dtype)
    difference = torch.where((weight != 0)[:, None], student - teacher, 0.0)
    distance = F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none", beta=beta).sum(1)
    return (distance * weight).sum() / weight.sum().clamp_min(MIN_NORMALIZER)


def weighted_sigmoid_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Cross entropy against the teacher's probability, less its entropy, averaged by weight over the rows.

    Args:
        student, teacher: (M,) logits, any float dtype, such as FCOS's centerness.
        weight: (M,), as in :func:`weighted_box_loss`.

    Returns:
        Scalar: the weighted sum over the sum of the weights, or over 1 where that is less.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    student, teacher = _wide_rows(student[:, None], teacher[:, None])
    _check_one_for_each_row(weight, "weight", student)
    weight = weight.detach().to(student.dtype)
    student, teacher = (torch.where((weight != 0)[:, None], x, 0.0) for x in (student, teacher))
    divergence = _divergence(student, teacher).squeeze(1)
    return (divergence * weight).sum() / weight.sum().clamp_min(MIN_NORMALIZER)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Of each element: cross entropy against the teacher's probability, less its entropy."""
    target = teacher.sigmoid()
    # The entropy of a sigmoid is its cross entropy against itself, to the last bit where both agree.
    return F.binary_cross_entropy_with_logits(
        student, target, reduction="none"
    ) - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")


def _wide_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 or wider, the teacher without its graph."""
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape, "
            "of two dimensions"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def _check_one_for_each_row(values: Tensor | None, name: str, rows: Tensor) -> None:
    if values is not None and values.shape != rows.shape[:1]:
        raise ValueError(f"{name} {tuple(values.shape)} must be ({len(rows)},), one for each row")
