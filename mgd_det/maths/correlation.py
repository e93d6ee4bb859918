"""Compute how badly the channels of two networks correlate. The functions are pure."""

from __future__ import annotations

from torch import Tensor

from .moments import position_count, standardised
from .shapes import check_one_shape


def correlation_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute half the mean squared distance of the standardised features.

    Each channel of each side is standardised over the unpadded positions of all images. The result is then 1
    minus Pearson's correlation, averaged over the channels (PKD: Cao et al., NeurIPS 2022). It is 0 for
    channels that agree up to scale and shift, 1 for unrelated ones and 2 for opposite ones. A channel that is
    constant on one side counts 0.5 and gives no gradient.

    Args:
        student: (N, C, H, W), any float dtype; the loss is computed in float32 or wider.
        teacher: (N, C, H, W); no gradient flows into it.
        mask: (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.

    Returns:
        Scalar.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    check_one_shape(student, teacher)
    difference = standardised(student, mask) - standardised(teacher.detach(), mask)
    return 0.5 * difference.square().sum() / (position_count(student, mask) * student.shape[1])
