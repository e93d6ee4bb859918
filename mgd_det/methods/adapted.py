"""The base of methods that compare the student's adapted features with the teacher's, tap by tap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .base import Features, LossInfo, Method, TapFeatures, TapInfo, levels_at
from .settings import module_key


class AdaptedMethod(Method):
    """A method with one loss at each tap, at a tap in the head the mean over its levels.

    Subclasses define `distance`.

    Args:
        name: name of the method, which the names of its losses contain.
        adapters: by tap, a module that maps student features, (N, Cs, H, W), to (N, Ct, H, W).
        weights: by tap, the weight of the loss.
    """

    def __init__(self, *, name: str, adapters: Mapping[str, nn.Module], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.taps = list(adapters)
        self.name, self.weights = name, dict(weights)
        self.adapters = nn.ModuleDict({module_key(tap): adapter for tap, adapter in adapters.items()})

    @property
    def losses(self) -> dict[str, LossInfo]:
        return {f"loss_{self.name}_{tap}": LossInfo(tap, w) for tap, w in self.weights.items()}

    def weight_key(self, loss: str) -> str:
        return "LOSS_WEIGHTS"

    def forward(self, features: Features) -> dict[str, Tensor]:
        losses = {}
        for name, (tap, weight) in self.losses.items():
            levels = levels_at(features, tap)
            losses[name] = torch.stack([self.distance(tap, level) for level in levels]).mean() * weight
        return losses

    def adapted(self, tap: str, features: TapFeatures) -> Tensor:
        """Returns the student's features behind the adapter, (N, Ct, H, W)."""
        found: Tensor = self.adapters[module_key(tap)](features.student)
        return found

    def distance(self, tap: str, features: TapFeatures) -> Tensor:
        """Returns the scalar loss at a tap, in float32 or wider, before its weight."""
        raise NotImplementedError


def adapter(student: TapInfo, teacher: TapInfo) -> nn.Module:
    """Returns a 1x1 convolution from the student's width to the teacher's, or nothing where they agree."""
    if student.channels == teacher.channels:
        return nn.Identity()
    return nn.Conv2d(student.channels, teacher.channels, 1)
