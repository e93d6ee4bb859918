"""Imitate the teacher's features through a learned adapter.

The adapter is a 1x1 convolution in plain imitation, FitNets' hint (Romero et al., ICLR 2015), and an MLP over
the channels in channel-wise transformation (Liu et al., arXiv 2303.13212).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mgd_det.errors import ConfigError

from .base import Features, Inspect, LossInfo, Method, TapFeatures, TapInfo, maps_at, register_method
from .settings import choice, module_key, named_taps, number, tap_weights

ADAPTERS = ("auto", "always", "never")


class AdaptedImitation(Method):
    """The mean squared error between the student's adapted features and the teacher's, at each tap.

    Args:
        name: name of the method, which the names of its losses contain.
        adapters: by tap, a module that maps student features, (N, Cs, H, W), to (N, Ct, H, W).
        weights: by tap, the weight of the loss.
        foreground_weight: weight of a position in a ground-truth box, at least 0; others have weight 1.
    """

    def __init__(
        self,
        *,
        name: str,
        adapters: Mapping[str, nn.Module],
        weights: Mapping[str, float],
        foreground_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.taps = list(adapters)
        self.name, self.weights, self.foreground_weight = name, dict(weights), foreground_weight
        self.wants_foreground = foreground_weight != 1
        self.adapters = nn.ModuleDict({module_key(tap): adapter for tap, adapter in adapters.items()})

    @property
    def losses(self) -> dict[str, LossInfo]:
        return {f"loss_{self.name}_{tap}": LossInfo(tap, w) for tap, w in self.weights.items()}

    def weight_key(self, loss: str) -> str:
        return "LOSS_WEIGHTS"

    def forward(self, features: Features) -> dict[str, Tensor]:
        return {name: self._loss(tap, maps_at(features, tap)) * w for name, (tap, w) in self.losses.items()}

    def _loss(self, tap: str, features: TapFeatures) -> Tensor:
        """Return the scalar error at a tap, computed in float32 or wider, before the loss's weight."""
        adapted = self.adapters[module_key(tap)](features.student)
        dtype = torch.promote_types(adapted.dtype, torch.float32)
        difference = adapted.to(dtype) - features.teacher.to(dtype)
        if features.mask is not None:
            difference = torch.where(features.mask, difference, 0.0)
        errors = difference.square().mean(1, keepdim=True)
        counts = torch.ones_like(errors) if features.mask is None else features.mask.to(dtype)
        if features.foreground is not None:
            counts = torch.where(features.foreground, counts * self.foreground_weight, counts)
        # With a foreground weight of 0 there may be no position that counts. The loss is then 0.
        return (errors * counts).sum() / counts.sum().clamp_min(torch.finfo(dtype).tiny)


@register_method("imitation")
class Imitation(AdaptedImitation):
    """Plain imitation, through a 1x1 convolution if the widths of student and teacher differ."""

    @classmethod
    def from_config(cls, cfg: Any, student: Inspect, teacher: Inspect) -> Imitation:
        key = "DISTILL.IMITATION"
        taps = named_taps(f"{key}.TAPS", cfg.TAPS)
        kind = choice(f"{key}.ADAPTER", cfg.ADAPTER, ADAPTERS)
        ours, theirs = student(taps), teacher(taps)
        if kind == "never":
            for tap in taps:
                if ours[tap].channels != theirs[tap].channels:
                    raise ConfigError(
                        f"{key}.ADAPTER",
                        kind,
                        f"at {tap!r} the student has {ours[tap].channels} channels and the teacher "
                        f"{theirs[tap].channels}",
                        'Set it to "auto".',
                    )

        def adapter(student: TapInfo, teacher: TapInfo) -> nn.Module:
            if kind == "always" or student.channels != teacher.channels:
                return nn.Conv2d(student.channels, teacher.channels, 1)
            return nn.Identity()

        return cls(
            name="imitation",
            adapters={tap: adapter(ours[tap], theirs[tap]) for tap in taps},
            weights=tap_weights(f"{key}.LOSS_WEIGHTS", cfg.LOSS_WEIGHTS, taps),
            foreground_weight=number(f"{key}.FOREGROUND_WEIGHT", cfg.FOREGROUND_WEIGHT),
        )


@register_method("channel_mlp")
class ChannelMLP(AdaptedImitation):
    """Channel-wise transformation, through the MLP `W2 relu(W1 F)` over the channels of the student."""

    @classmethod
    def from_config(cls, cfg: Any, student: Inspect, teacher: Inspect) -> ChannelMLP:
        key = "DISTILL.CHANNEL_MLP"
        taps = named_taps(f"{key}.TAPS", cfg.TAPS)
        hidden = int(number(f"{key}.HIDDEN", cfg.HIDDEN))
        ours, theirs = student(taps), teacher(taps)

        def adapter(student: int, teacher: int) -> nn.Module:
            width = hidden or teacher
            return nn.Sequential(nn.Conv2d(student, width, 1), nn.ReLU(), nn.Conv2d(width, teacher, 1))

        return cls(
            name="channel_mlp",
            adapters={tap: adapter(ours[tap].channels, theirs[tap].channels) for tap in taps},
            weights=tap_weights(f"{key}.LOSS_WEIGHTS", cfg.LOSS_WEIGHTS, taps),
        )
