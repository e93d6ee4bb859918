"""The contract between a trainer and a :class:`~mgd_det.modeling.detector.DistilledDetector`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class StepPlan:
    """Tasks of a detector in its next training step, beside training its student.

    Args:
        loss_factor: multiplies all distillation losses; with 0 the teacher is not run.
        loss_scales: further factors of single losses, by name; those without one have 1.
        collect_statistics: add the step's features to the statistics that the matching is solved from.
        measure_gradients: compare the gradients of the losses, for `take_gradient_ratios`.
        skipped: beside a `loss_factor` of 0: return no distillation losses, in place of zeros.
    """

    loss_factor: float = 1.0
    loss_scales: Mapping[str, float] = field(default_factory=dict)
    collect_statistics: bool = False
    measure_gradients: bool = False
    skipped: bool = False

    @property
    def stopped(self) -> bool:
        """True where the distillation losses have come to their end."""
        return self.loss_factor == 0 and not self.skipped

    def after_forward(self) -> StepPlan:
        """Returns the plan for further forward passes of the same step, such as those of PreciseBN.

        The factors stay; features and gradients are taken from the first pass alone.
        """
        return replace(self, collect_statistics=False, measure_gradients=False)

    def factor_of(self, loss: str) -> float:
        """Returns what multiplies a loss."""
        return self.loss_factor * self.loss_scales.get(loss, 1.0)
