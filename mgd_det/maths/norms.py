"""Norm layers for the student's side of a loss, which exist in training only.

Their statistics leave padded positions out, so that an image gives the same loss whatever it is batched with.
In the shapes, N is the number of images, C the number of channels and H x W are the positions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, once_differentiable

from .moments import centred_and_variance, without_padding

MAX_GROUPS = 32  # groups of the GroupNorm in the reference implementation


class MaskedGroupNorm(nn.GroupNorm):
    """GroupNorm whose statistics are those of the unpadded positions."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise features.

        Args:
            x: (N, C, H, W), any float dtype.
            mask: (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.

        Returns:
            (N, C, H, W), float32 or wider with a mask. Its values at the padding mean nothing.
        """
        if mask is None and x.numel() > self.num_groups:
            return super().forward(x)
        mask = _nothing_padded(x) if mask is None else mask  # torch refuses a single number in a group
        return _GroupNorm.apply(x, mask, self.num_groups, self.weight, self.bias, self.eps)


class _GroupNorm(torch.autograd.Function):
    """The masked group norm with a gradient of its own, differentiable once.

    Automatic differentiation would read the features several times as often. Sums are taken in float32 or
    wider, and the statistics of a group are kept in float64.
    """

    @staticmethod
    def forward(
        ctx: BackwardCFunction,
        x: Tensor,
        mask: Tensor,
        groups: int,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        n, c = x.shape[:2]
        # A copy, which is changed in place.
        centred = without_padding(x, mask)
        count = (mask.sum((1, 2, 3)) * (c // groups)).clamp_min(1)[:, None].double()
        mean = centred.reshape(n, groups, -1).sum(2) / count
        centred.sub_(_maps(mean, centred)).masked_fill_(~mask, 0)
        square = torch.linalg.vector_norm(centred.reshape(n, groups, -1), dim=2).double().square()
        rstd = (square / count + eps).rsqrt()
        scale = (_per_channel(rstd, c) * weight).to(centred.dtype)
        ctx.save_for_backward(centred, mask, weight, count, rstd)
        return torch.addcmul(bias[:, None, None], centred, scale[..., None, None])

    @staticmethod
    @once_differentiable
    def backward(ctx: BackwardCFunction, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        centred, mask, weight, count, rstd = saved
        (n, c), groups = centred.shape[:2], rstd.shape[1]
        by_bias, by_unit = gradient.sum((2, 3)), (gradient * centred).sum((2, 3))

        def by_group(of_channel: Tensor) -> Tensor:  # (N, C) -> (N, groups)
            return (of_channel * weight).double().reshape(n, groups, -1).sum(2)

        constant = _maps(-by_group(by_bias) * rstd / count, centred)
        slope = _maps(-by_group(by_unit) * rstd**3 / count, centred)
        scale = (_per_channel(rstd, c) * weight).to(centred.dtype)
        by_x = torch.addcmul(constant, centred, slope).addcmul_(gradient, scale[..., None, None])
        by_weight = (by_unit * _per_channel(rstd, c)).sum(0).to(weight.dtype)
        by_x = by_x.masked_fill_(~mask, 0)  # Autograd casts it to the dtype of x.
        return by_x, None, None, by_weight, by_bias.sum(0).to(weight.dtype), None


def _nothing_padded(x: Tensor) -> Tensor:
    """Return a mask, (N, 1, H, W), that leaves nothing out."""
    return torch.ones_like(x[:, :1], dtype=torch.bool)


def _per_channel(of_group: Tensor, channels: int) -> Tensor:
    """Repeat the value of each group, (N, groups), for its channels: (N, C)."""
    return of_group.repeat_interleave(channels // of_group.shape[1], 1)


def _maps(of_group: Tensor, like: Tensor) -> Tensor:
    """Return the values of groups, (N, groups), in a shape and dtype that fit `like`: (N, C, 1, 1)."""
    return _per_channel(of_group, like.shape[1]).to(like.dtype)[..., None, None]


class MaskedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the unpadded positions of this process's batch, without running statistics.

    It stays in eval mode, in which a norm without running statistics does the same as in training mode.
    Otherwise Detectron2's `hooks.PreciseBN` would take it for one that has them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)
        self.train(False)

    def train(self, mode: bool = True) -> MaskedBatchNorm:
        """Leave the norm in eval mode, whatever `mode` is."""
        super().train(False)
        return self

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise features; arguments and result are those of :meth:`MaskedGroupNorm.forward`."""
        if mask is None and x.numel() > self.num_features:  # torch refuses a single number in a channel
            return super().forward(x)
        centred, _, variance = centred_and_variance(without_padding(x, mask), mask)
        unit = centred * torch.rsqrt(variance + self.eps)
        return unit * self.weight[:, None, None] + self.bias[:, None, None]


class NoNorm(nn.Module):
    """The absence of a norm."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the features as they are."""
        return x


def _group_norm(channels: int) -> nn.Module:
    # The greatest common divisor allows any number of channels, with 32 groups where the reference has them.
    return MaskedGroupNorm(math.gcd(channels, MAX_GROUPS), channels)


STUDENT_NORMS = {"GN": _group_norm, "BN": MaskedBatchNorm, "": lambda channels: NoNorm()}
