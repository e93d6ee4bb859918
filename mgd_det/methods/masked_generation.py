"""Masked generation (Yang et al., ECCV 2022), whose authors call it MGD, as Matching Guided Distillation is.

Positions of the student's features are left out at random, and two convolutions generate the teacher's
features from the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mgd_det.distributed import rank
from mgd_det.errors import ConfigError
from mgd_det.maths.squared_error import mean_squared_error
from mgd_det.rng import step_generator

from .adapted import AdaptedMethod, adapter
from .base import Features, Inspect, TapFeatures, register_method
from .settings import module_key, named_taps, number, tap_weights

if TYPE_CHECKING:
    from yacs.config import CfgNode


class Generation(nn.Module):
    """Two 3x3 convolutions with a ReLU between them, to which padding is what lies outside of the image."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor, keep: Tensor, mask: Tensor | None) -> Tensor:
        """Returns generated features.

        Args:
            features: (N, C, H, W).
            keep: (N, 1, H, W) bool, False at positions that are left out.
            mask: (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.
        """
        hidden = self.first(features.masked_fill(~(keep if mask is None else keep & mask), 0)).relu()
        generated: Tensor = self.second(hidden if mask is None else hidden.masked_fill(~mask, 0))
        return generated


@register_method("masked_generation")
class MaskedGeneration(AdaptedMethod):
    """The mean squared error of features that are generated from a random part of the student's.

    Args:
        adapters, weights: as :class:`AdaptedMethod`'s.
        channels: by tap, the teacher's width.
        probability: that a position is left out, from 0 to below 1.
        rank: this process's number.
    """

    def __init__(
        self,
        *,
        adapters: Mapping[str, nn.Module],
        weights: Mapping[str, float],
        channels: Mapping[str, int],
        probability: float,
        rank: int = 0,
    ) -> None:
        super().__init__(name="masked_generation", adapters=adapters, weights=weights)
        self.generations = nn.ModuleDict({module_key(tap): Generation(c) for tap, c in channels.items()})
        self.probability, self.rank = probability, rank
        self._step = 0  # training steps so far, which seed the random positions

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Inspect, teacher: Inspect) -> MaskedGeneration:
        key = "DISTILL.MASKED_GENERATION"
        taps = named_taps(f"{key}.TAPS", cfg.TAPS)
        probability = number(f"{key}.PROBABILITY", cfg.PROBABILITY)
        if not probability < 1:
            problem = "nothing would be left to generate features from"
            raise ConfigError(f"{key}.PROBABILITY", probability, problem, "Give a number like 0.65.")
        ours, theirs = student(taps), teacher(taps)
        return cls(
            adapters={tap: adapter(ours[tap], theirs[tap]) for tap in taps},
            weights=tap_weights(f"{key}.LOSS_WEIGHTS", cfg.LOSS_WEIGHTS, taps),
            channels={tap: theirs[tap].channels for tap in taps},
            probability=probability,
            rank=rank(),
        )

    def forward(self, features: Features) -> dict[str, Tensor]:
        losses = super().forward(features)
        self._step += 1
        return losses

    def distance(self, tap: str, features: TapFeatures) -> Tensor:
        adapted = self.adapted(tap, features)
        shape, device = (len(adapted), 1, *adapted.shape[2:]), adapted.device
        generator = step_generator(device, self._step, self.rank, 1 + self.taps.index(tap))
        keep = torch.rand(shape, generator=generator, device=device) >= self.probability
        generated = self.generations[module_key(tap)](adapted, keep, features.mask)
        return mean_squared_error(generated, features.teacher, features.mask)

    def get_extra_state(self) -> dict[str, object]:
        return {**super().get_extra_state(), "step": self._step}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        super().set_extra_state(state)
        self._step = state["step"]
