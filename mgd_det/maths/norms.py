"""Norm layers for the student's side of a loss; they exist in training only.

No Detectron2. Statistics leave padded positions out, so that an image gives the same loss whatever
it is batched with.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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
        return _GroupNorm.apply(x, mask, self.num_groups, self.weight, self.bias, self.eps)


class _GroupNorm(torch.autograd.Function):
    """By hand, since automatic differentiation goes over the features several times as often; differentiable
    once. Sums in float32 or wider, what is small in float64."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mask: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        n, c = x.shape[:2]
        centred = _fill_padding(x, mask)
        count = (mask.sum((1, 2, 3)) * (c // groups)).clamp_min(1)[:, None].double()
        mean = centred.reshape(n, groups, -1).sum(2) / count
        centred.sub_(_maps(mean, centred)).masked_fill_(~mask, 0)
        square = torch.linalg.vector_norm(centred.reshape(n, groups, -1), dim=2).double().square()
        rstd = (square / count + eps).rsqrt()
        scale = (_per_channel(rstd, c) * weight).to(centred.dtype)
        ctx.save_for_backward(centred, mask, weight, count, rstd)
        ctx.dtype = x.dtype
        return torch.addcmul(bias[:, None, None], centred, scale[..., None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        centred, mask, weight, count, rstd = ctx.saved_tensors
        (n, c), groups = centred.shape[:2], rstd.shape[1]
        by_bias, by_unit = gradient.sum((2, 3)), (gradient * centred).sum((2, 3))

        def by_group(of_channel: Tensor) -> Tensor:  # (N, C) -> (N, groups)
            return (of_channel * weight).double().reshape(n, groups, -1).sum(2)

        constant = _maps(-by_group(by_bias) * rstd / count, centred)
        slope = _maps(-by_group(by_unit) * rstd**3 / count, centred)
        scale = (_per_channel(rstd, c) * weight).to(centred.dtype)
        by_x = torch.addcmul(constant, centred, slope).addcmul_(gradient, scale[..., None, None])
        by_weight = (by_unit * _per_channel(rstd, c)).sum(0).to(weight.dtype)
        by_x = by_x.masked_fill_(~mask, 0).to(ctx.dtype)
        return by_x, None, None, by_weight, by_bias.sum(0).to(weight.dtype), None


def _per_channel(of_group: Tensor, channels: int) -> Tensor:
    """(N, groups) -> (N, C)."""
    return of_group.repeat_interleave(channels // of_group.shape[1], 1)


def _maps(of_group: Tensor, like: Tensor) -> Tensor:
    """(N, groups) -> (N, C, 1, 1), in the dtype of `like`, (N, C, H, W)."""
    return _per_channel(of_group, like.shape[1]).to(like.dtype)[..., None, None]


class MaskedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the unpadded positions of this process's batch, without running statistics.

    Always in eval mode, where without them it does the same: of batch norms in training mode
    `hooks.PreciseBN` computes the running statistics.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)
        self.train(False)

    def train(self, mode: bool = True) -> MaskedBatchNorm:
        super().train(False)
        return self

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
