"""PKD: the student's features are to correlate with the teacher's (Cao et al., NeurIPS 2022).

Scale and shift of a channel do not matter, so that one weight serves levels and networks of any scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from mgd_det.maths.correlation import correlation_loss

from .adapted import AdaptedMethod, adapter
from .base import Inspect, TapFeatures, register_method
from .settings import named_taps, tap_weights

if TYPE_CHECKING:
    from yacs.config import CfgNode


@register_method("pkd")
class PKD(AdaptedMethod):
    """1 minus Pearson's correlation of each channel with the teacher's, over this process's batch."""

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Inspect, teacher: Inspect) -> PKD:
        taps = named_taps("DISTILL.PKD.TAPS", cfg.TAPS)
        ours, theirs = student(taps), teacher(taps)
        return cls(
            name="pkd",
            adapters={tap: adapter(ours[tap], theirs[tap]) for tap in taps},
            weights=tap_weights("DISTILL.PKD.LOSS_WEIGHTS", cfg.LOSS_WEIGHTS, taps),
        )

    def distance(self, tap: str, features: TapFeatures) -> Tensor:
        return correlation_loss(self.adapted(tap, features), features.teacher, features.mask)
