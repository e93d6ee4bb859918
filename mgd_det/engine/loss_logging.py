"""Scalars that tell how much each distillation loss counts. They go to Detectron2's event storage."""

from __future__ import annotations

from collections.abc import Mapping

from detectron2.utils.events import get_event_storage

from mgd_det.methods import LossInfo
from mgd_det.modeling.step_plan import StepPlan


def log_weights(losses: Mapping[str, LossInfo], plan: StepPlan) -> None:
    """Log the weight of every loss in this step, as `<loss>/weight`."""
    for name, info in losses.items():
        _log(name, "weight", info.weight * plan.factor_of(name))


def log_gradient_ratios(ratios: Mapping[str, float], plan: StepPlan) -> None:
    """Log how strongly each loss has pulled in a step, relative to the task, as `<loss>/gradient_ratio`.

    Args:
        ratios: of the losses before the step's factors, from `DistilledDetector.take_gradient_ratios`.
        plan: of the step.
    """
    for name, ratio in ratios.items():
        _log(name, "gradient_ratio", ratio * plan.factor_of(name))


def _log(loss: str, what: str, value: float) -> None:
    # Without "loss_": Detectron2 prints every scalar with "loss" in its name to the terminal.
    name = loss[len("loss_") :]
    get_event_storage().put_scalar(f"{name}/{what}", value, smoothing_hint=False)
