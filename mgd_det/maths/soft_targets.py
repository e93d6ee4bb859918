"""Losses on a detector's predictions, with the teacher's predictions as soft targets.

The functions are pure and know nothing of Detectron2. They compute in float32 or wider and give the teacher
no gradient. A loss without anything to learn from is zero, and in the student's graph. In the shapes, M is
the number of dense predictions, R the number of regions of interest and K the number of classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

MIN_NORMALIZER = 1.0  # least divisor of a sum over predictions, since images may hold no object


def sigmoid_soft_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None = None,
    gamma: float = 2.0,
    normalizer: float | Tensor | None = None,
) -> Tensor:
    """Compute a focal cross entropy of dense classification.

    An element counts `|sigmoid(s) - sigmoid(t)|^gamma * (BCE(s, sigmoid(t)) - entropy(sigmoid(t)))`. This is
    the quality focal loss (Li et al., "Generalized Focal Loss", NeurIPS 2020, eq. 5) with the teacher's
    probability as the quality of every class, and with two changes: no gradient flows through the weight, and
    the entropy is subtracted, so that agreement costs nothing.

    Args:
        student, teacher: (M, K) logits, any float dtype.
        mask: (M,) bool, True at the rows that count; None if all do.
        gamma: exponent of the weight; 0 weighs all elements alike.
        normalizer: divides the sum; None takes a soft number of foreground rows, see
            :func:`soft_foreground`.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    student, teacher = _wide_rows(student, teacher)
    _check_one_for_each_row(mask, "mask", student)
    if mask is not None:
        # Equal logits count nothing. A product with the mask would let NaN through.
        student, teacher = (torch.where(mask[:, None], x, 0.0) for x in (student, teacher))
    divergence = _divergence(student, teacher)
    weight = (student.detach().sigmoid() - teacher.sigmoid()).abs().pow(gamma)
    # Rows that do not count have logits of 0 now.
    return (weight * divergence).sum() / (
        soft_foreground(teacher, mask) if normalizer is None else normalizer
    )


def soft_foreground(logits: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return a soft number of foreground rows, the sum of :func:`foreground_confidence` and 1 at least.

    Args:
        logits: (M, K), any float dtype.
        mask: (M,) bool, True at the rows that count; None if all do.
    """
    confidence = foreground_confidence(logits)
    if mask is not None:
        confidence = torch.where(mask, confidence, 0.0)
    return confidence.sum().clamp_min(MIN_NORMALIZER)


def foreground_confidence(logits: Tensor) -> Tensor:
    """Return the confidence of a sigmoid classifier that each row is an object.

    It is the row's largest probability, squared. Without the square, a hundred thousand background rows of
    0.01 would count for more than all objects.

    Args:
        logits: (M, K), any float dtype.

    Returns:
        (M,) in [0, 1], float32 or wider.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.sigmoid().amax(1).square()


def softmax_soft_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Compute the mean divergence of the class distributions of regions, softened by a temperature.

    It is `T^2 KL(softmax(t / T) || softmax(s / T))` (Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network", 2015, section 2). With the factor T^2 gradients of all temperatures are of one size.

    Args:
        student, teacher: (R, K + 1) logits, any float dtype.
        temperature: T > 0.

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
    """Compute the smooth L1 distance of box predictions, a weighted mean over the rows of sums over the four.

    Args:
        student, teacher: (M, 4) box predictions, any float dtype.
        weight: (M,) weights of the rows, at least 0; no gradient flows into them. A row with weight 0 may
            hold anything, including NaN.
        beta: distance at which the squared error turns into L1, as in
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


def weighted_giou_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted sum over rows of 1 - GIoU of two boxes (Rezatofighi et al., CVPR 2019).

    Args:
        student, teacher: (M, 4) boxes, x1, y1, x2, y2, any float dtype.
        weight: (M,) weights of the rows, as in :func:`weighted_box_loss`.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    student, teacher = _wide_rows(student, teacher)
    _check_one_for_each_row(weight, "weight", student)
    weight = weight.detach().to(student.dtype)
    student, teacher = (torch.where((weight != 0)[:, None], x, 0.0) for x in (student, teacher))
    distance: Tensor = generalized_box_iou_loss(student, teacher, reduction="none")
    return (distance * weight).sum()


def weighted_sigmoid_loss(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted mean over rows of the cross entropy against the teacher's probability.

    The entropy of that probability is subtracted, so that agreement costs nothing.

    Args:
        student, teacher: (M,) logits, such as FCOS's centerness, any float dtype.
        weight: (M,) weights of the rows, as in :func:`weighted_box_loss`.

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
    """Return each element's cross entropy against the teacher's probability, less the latter's entropy."""
    target = teacher.sigmoid()
    # The entropy is computed as a cross entropy too, so that the difference is exactly 0 for equal logits.
    return F.binary_cross_entropy_with_logits(
        student, target, reduction="none"
    ) - F.binary_cross_entropy_with_logits(teacher, target, reduction="none")


def _wide_rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in float32 or wider, the teacher without its graph; raise a ValueError unless they fit."""
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} must have one shape, "
            "of two dimensions"
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.detach().to(dtype)


def _check_one_for_each_row(values: Tensor | None, name: str, rows: Tensor) -> None:
    """Raise a ValueError if there are values, and not one for each row."""
    if values is not None and values.shape != rows.shape[:1]:
        raise ValueError(f"{name} {tuple(values.shape)} must be ({len(rows)},), one for each row")
