"""Imitate the teacher's features through a learned adapter.

The adapter is a 1x1 convolution in plain imitation, FitNets' hint (Romero et al., ICLR 2015), and an MLP over
the channels in channel-wise transformation (Liu et al., arXiv 2303.13212).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mgd_det.errors import ConfigError
from mgd_det.maths.squared_error import mean_squared_error

from .adapted import AdaptedMethod, adapter
from .base import HEAD, Inspect, TapFeatures, TapInfo, register_method
from .settings import choice, named_taps, number, tap_weights

ADAPTERS = ("auto", "always", "never")
FOREGROUNDS = ("boxes", "teacher")


class AdaptedImitation(AdaptedMethod):
    """The mean squared error between the student's adapted features and the teacher's, at each tap.

    Args:
        name, adapters, weights: as :class:`AdaptedMethod`'s.
        foreground_weight: weight of a position of an object, at least 0; one of the background has weight 1.
        foreground: "boxes", where a position is an object's or not, or "teacher", where it is as far as the
            teacher's largest class probability says.
    """

    def __init__(
        self,
        *,
        name: str,
        adapters: Mapping[str, nn.Module],
        weights: Mapping[str, float],
        foreground_weight: float = 1.0,
        foreground: str = "boxes",
    ) -> None:
        super().__init__(name=name, adapters=adapters, weights=weights)
        self.foreground_weight, self.foreground = foreground_weight, foreground
        self.wants_foreground = foreground == "boxes" and foreground_weight != 1
        self.wants_confidence = foreground == "teacher"

    def distance(self, tap: str, features: TapFeatures) -> Tensor:
        by_teacher = self.foreground == "teacher"
        foreground = features.confidence if by_teacher else features.foreground
        weight = None if foreground is None else 1 + (self.foreground_weight - 1) * foreground
        return mean_squared_error(self.adapted(tap, features), features.teacher, features.mask, weight)


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

        def build(student: TapInfo, teacher: TapInfo) -> nn.Module:
            if kind == "always":
                return nn.Conv2d(student.channels, teacher.channels, 1)
            return adapter(student, teacher)

        foreground = choice(f"{key}.FOREGROUND", cfg.FOREGROUND, FOREGROUNDS)
        weight = number(f"{key}.FOREGROUND_WEIGHT", cfg.FOREGROUND_WEIGHT)
        if foreground == "teacher":
            if weight == 1:
                problem = 'with FOREGROUND "teacher" it leaves all positions alike'
                raise ConfigError(f"{key}.FOREGROUND_WEIGHT", weight, problem, "Give a number like 10.0.")
            _check_dense(f"{key}.FOREGROUND", teacher)
        return cls(
            name="imitation",
            adapters={tap: build(ours[tap], theirs[tap]) for tap in taps},
            weights=tap_weights(f"{key}.LOSS_WEIGHTS", cfg.LOSS_WEIGHTS, taps),
            foreground_weight=weight,
            foreground=foreground,
        )


def _check_dense(key: str, teacher: Inspect) -> None:
    """Raise a ConfigError unless the teacher has class scores at every position."""
    try:
        head = teacher([HEAD])[HEAD].head
    except ConfigError:  # a head of no known kind
        head = None
    if head is None or head.kind == "proposals":
        problem = "this teacher has no class scores for every position, as RetinaNet and FCOS have"
        raise ConfigError(key, "teacher", problem, 'Choose such a teacher, or set it to "boxes".')


@register_method("channel_mlp")
class ChannelMLP(AdaptedImitation):
    """Channel-wise transformation, through the MLP `W2 relu(W1 F)` over the channels of the student."""

    @classmethod
    def from_config(cls, cfg: Any, student: Inspect, teacher: Inspect) -> ChannelMLP:
        key = "DISTILL.CHANNEL_MLP"
        taps = named_taps(f"{key}.TAPS", cfg.TAPS)
        hidden = int(number(f"{key}.HIDDEN", cfg.HIDDEN))
        ours, theirs = student(taps), teacher(taps)

        def build(student: int, teacher: int) -> nn.Module:
            width = hidden or teacher
            return nn.Sequential(nn.Conv2d(student, width, 1), nn.ReLU(), nn.Conv2d(width, teacher, 1))

        return cls(
            name="channel_mlp",
            adapters={tap: build(ours[tap].channels, theirs[tap].channels) for tap in taps},
            weights=tap_weights(f"{key}.LOSS_WEIGHTS", cfg.LOSS_WEIGHTS, taps),
        )
