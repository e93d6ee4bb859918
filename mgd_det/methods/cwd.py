"""Channel-wise distillation: each channel is to be active where the teacher's is (Shu et al., ICCV 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

from mgd_det.errors import ConfigError
from mgd_det.maths.channel_softmax import channel_softmax_loss

from .adapted import AdaptedMethod, adapter
from .base import CLASS_MAPS, Inspect, TapFeatures, TapInfo, register_method
from .same_predictions import check_predictions
from .settings import above_zero, named_taps, tap_weights

if TYPE_CHECKING:
    from yacs.config import CfgNode


@register_method("cwd")
class CWD(AdaptedMethod):
    """The divergence of the channels' distributions over the positions.

    Args:
        adapters, weights: as :class:`AdaptedMethod`'s.
        temperature: of both distributions, above 0.
    """

    def __init__(
        self, *, adapters: Mapping[str, nn.Module], weights: Mapping[str, float], temperature: float
    ) -> None:
        super().__init__(name="cwd", adapters=adapters, weights=weights)
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Inspect, teacher: Inspect) -> CWD:
        key = "DISTILL.CWD"
        taps = named_taps(f"{key}.TAPS", cfg.TAPS, heads=[CLASS_MAPS])
        ours, theirs = student(taps), teacher(taps)
        for network, info in {"student": ours, "teacher": theirs}.items():
            head = info[CLASS_MAPS].head if CLASS_MAPS in taps else None
            if head is not None and head.kind == "proposals":
                problem = f"the {network} has no class maps, as RetinaNet and FCOS have"
                raise ConfigError(f"{key}.TAPS", taps, problem, f'Leave "{CLASS_MAPS}" out.')
        return cls(
            adapters={
                tap: nn.Identity() if tap == CLASS_MAPS else adapter(ours[tap], theirs[tap]) for tap in taps
            },
            weights=tap_weights(f"{key}.LOSS_WEIGHTS", cfg.LOSS_WEIGHTS, taps),
            temperature=above_zero(f"{key}.TEMPERATURE", cfg.TEMPERATURE),
        )

    def attach(self, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]) -> None:
        if CLASS_MAPS in self.taps:
            ours, theirs = student[CLASS_MAPS].head, teacher[CLASS_MAPS].head
            assert ours is not None and theirs is not None  # this tap always has one
            check_predictions("cwd", ours, theirs)

    def distance(self, tap: str, features: TapFeatures) -> Tensor:
        return channel_softmax_loss(
            self.adapted(tap, features), features.teacher, features.mask, self.temperature
        )
