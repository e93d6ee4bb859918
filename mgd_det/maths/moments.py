"""Mean and variance of each channel over the unpadded positions of a batch.

The functions are pure and know nothing of Detectron2. In the shapes, N is the number of images, C the number
of channels and H x W are the positions.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
