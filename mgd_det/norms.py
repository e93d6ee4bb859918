"""Norm layers for the student's side of a loss; they exist in training only.

No Detectron2. Statistics leave padded positions out, so that an image gives the same loss whatever
it is batched with.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

MAX_GROUPS = 32  # of the reference's GroupNorm


def _fill_padding(x: Tensor, mask: Tensor) -> Tensor:
    """Zero at the padding, whatever it holds (infinity times 0 would be NaN); float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).masked_fill(~mask, 0)


def _standardised(x: Tensor, mask: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """`x`, zero where `mask` is False, at mean 0 and variance 1 over `dims` elsewhere."""
    mask = mask.expand_as(x)
    count = mask.sum(dims, keepdim=True).clamp_min(1)
    mean = x.sum(dims, keepdim=True) / count
    variance = (x - mean).masked_fill(~mask, 0).square().sum(dims, keepdim=True) / count
    return (x - mean) * torch.rsqrt(variance + eps)


class MaskedGroupNorm(nn.GroupNorm):
    """GroupNorm over the unpadded positions. `mask`: (N, 1, H, W), True where unpadded, or None."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return super().forward(x)
        n, c, h, w = x.shape
        grouped = _fill_padding(x, mask).reshape(n, self.num_groups, -1, h, w)
        unit = _standardised(grouped, mask[:, None], (2, 3, 4), self.eps).reshape(n, c, h, w)
        return unit * self.weight[:, None, None] + self.bias[:, None, None]


class MaskedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the unpadded positions of this process's batch, without running statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return super().forward(x)
        unit = _standardised(_fill_padding(x, mask), mask, (0, 2, 3), self.eps)
        return unit * self.weight[:, None, None] + self.bias[:, None, None]


class NoNorm(nn.Module):
    """Hands the features on as they are."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x


def _group_norm(channels: int) -> nn.Module:
    # A common divisor, so that any channel count works: 32 groups wherever the reference has 32.
    return MaskedGroupNorm(math.gcd(channels, MAX_GROUPS), channels)


STUDENT_NORMS = {"GN": _group_norm, "BN": MaskedBatchNorm, "": lambda channels: NoNorm()}
