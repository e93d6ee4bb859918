"""The contract between a trainer and a :class:`~mgd_det.modeling.detector.DistilledDetector`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class StepPlan:
    """Tasks of a detector in its next training step, beside training its student.

    Args:
        loss_factor: multiplies all distillation losses; with 0 the teacher is not run.
        loss_scales: further factors of single losses, by name; those without one have 1.
        collect_statistics: add the step's features to the statistics that the matching is solved from.
        measure_gradients: compare the gradients of the losses, for `take_gradient_ratios`.
    """

    loss_factor: float = 1.0
    loss_scales: Mapping[str, float] = field(default_factory=dict)
    collect_statistics: bool = False
    measure_gradients: bool = False

    def after_forward(self) -> StepPlan:
        """Returns the plan for further forward passes of the same step, such as those of PreciseBN.

        The factors stay; features and gradients are taken from the first pass alone.
        """
        return StepPlan(self.loss_factor, self.loss_scales)

    def factor_of(self, loss: str) -> float:
        """Returns what multiplies a loss."""
        return self.loss_factor * self.loss_scales.get(loss, 1.0)
