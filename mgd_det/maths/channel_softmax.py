"""Compare where each channel is active, by a softmax over its positions. The functions are pure."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .shapes import check_one_shape


def channel_softmax_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """Compute the divergence of the channels' distributions over the positions.

    With p the softmax of a channel's values, divided by T, over its unpadded positions, it is
    `T^2 KL(p_teacher || p_student)`, averaged over images and channels (channel-wise distillation: Shu et
    al., ICCV 2021). A value that is added to a whole channel of an image changes nothing.

    Args:
        student: (N, C, H, W), any float dtype; the loss is computed in float32 or wider.
        teacher: (N, C, H, W); no gradient flows into it.
        mask: (N, 1, H, W) bool, True at the unpadded positions, of which each image has one at least; None if
            there is no padding.
        temperature: T > 0.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    check_one_shape(student, teacher)
    found = _log_distribution(student, mask, temperature)
    target = _log_distribution(teacher.detach().to(found.dtype), mask, temperature)
    divergence = F.kl_div(found, target, reduction="sum", log_target=True)
    return temperature**2 * divergence / max(student.shape[0] * student.shape[1], 1)


def _log_distribution(x: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """Return the logarithm of each channel's softmax over the positions, (N, C, H W)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)) / temperature
    if mask is not None:
        # Not -inf: the difference of two of them is NaN. Half of the least number cannot overflow.
        x = x.masked_fill(~mask, torch.finfo(x.dtype).min / 2)
    return x.flatten(2).log_softmax(2)
