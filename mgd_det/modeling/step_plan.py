"""The contract between a trainer and a :class:`~mgd_det.modeling.detector.DistilledDetector`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepPlan:
    """Tasks of a detector in its next training step, beside training its student.

    Args:
        loss_factor: multiplies all distillation losses; with 0 the teacher is not run.
        collect_statistics: add the step's features to the statistics that the matching is solved from.
        measure_gradients: compare the gradients of the losses, for `take_gradient_ratios`.
    """

    loss_factor: float = 1.0
    collect_statistics: bool = False
    measure_gradients: bool = False

    def after_forward(self) -> StepPlan:
        """Returns the plan for further forward passes of the same step, such as those of PreciseBN.

        The factor stays; features and gradients are taken from the first pass alone.
        """
        return StepPlan(self.loss_factor)
