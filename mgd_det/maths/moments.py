"""Mean and variance of each channel over the unpadded positions of a batch.

The functions are pure and know nothing of Detectron2. In the shapes, N is the number of images, C the number
of channels and H x W are the positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-6  # added to deviations; a channel that deviates less from its mean counts as constant


def without_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return the features in float32 or wider, with zeros at the padding.

    Args:
        x: (N, C, H, W), any float dtype.
        mask: (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # Padding may hold infinity, which a product with 0 would turn into NaN.
    return x if mask is None else x.masked_fill(~mask, 0)


def centred_and_variance(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the moments of each channel over the unpadded positions of all images.

    Args:
        x: (N, C, H, W), 0 at the padding, see :func:`without_padding`.
        mask: (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.

    Returns:
        The features less their mean, (N, C, H, W), 0 at the padding; the mean and the variance (of the
        population), (1, C, 1, 1) each.
    """
    count = position_count(x, mask)
    mean = x.sum((0, 2, 3), keepdim=True) / count
    centred = without_padding(x - mean, mask)
    return centred, mean, centred.square().sum((0, 2, 3), keepdim=True) / count


def position_count(x: Tensor, mask: Tensor | None) -> Tensor | int:
    """Return the number of unpadded positions of all images, at least 1."""
    return max(x.shape[0] * x.shape[2] * x.shape[3], 1) if mask is None else mask.sum().clamp_min(1)


def standardised(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return features of mean 0 and deviation 1 in each channel over the unpadded positions of all images.

    Args:
        x: (N, C, H, W), any float dtype.
        mask: (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.

    Returns:
        (N, C, H, W) in float32 or wider, 0 at the padding, and in a constant channel 0 without a gradient.
    """
    centred, mean, variance = centred_and_variance(without_padding(x, mask), mask)
    return centred * _inverse_deviation(mean, variance)


def with_moments_of(x: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
    """Return features whose channels have the mean and the deviation of another network's.

    Args:
        x: (N, C, H, W), any float dtype, finite at the padding.
        other: (N, C, H, W), the features whose moments are taken; no gradient flows into them.
        mask: (N, 1, H, W) bool, True at the unpadded positions, over which the moments of both are taken;
            None if there is no padding.

    Returns:
        (N, C, H, W) in float32 or wider: all positions scaled and shifted, those of the padding as well. A
        constant channel becomes the other's mean, without a gradient.
    """
    _, mean, variance = centred_and_variance(without_padding(x, mask), mask)
    _, other_mean, other_variance = centred_and_variance(without_padding(other.detach(), mask), mask)
    scale = _inverse_deviation(mean, variance) * other_variance.sqrt()
    return (x.to(mean.dtype) - mean) * scale + other_mean


def _inverse_deviation(mean: Tensor, variance: Tensor) -> Tensor:
    """Return 1 / (deviation + EPSILON) of each channel, 0 for a constant one."""
    # In a large constant the mean's rounding error is a deviation, too.
    varies = variance > (EPSILON * mean.abs().clamp_min(1)).square()
    # The root of 0 has no gradient.
    return torch.where(varies, 1 / (torch.where(varies, variance, 1.0).sqrt() + EPSILON), 0.0)
