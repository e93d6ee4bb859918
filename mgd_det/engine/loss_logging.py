"""Scalars that tell how much each distillation loss counts. They go to Detectron2's event storage."""

from __future__ import annotations

from detectron2.utils.events import get_event_storage

from mgd_det.modeling.detector import DistilledDetector


def log_weights(detector: DistilledDetector, factor: float) -> None:
    """Log the weight of every loss in this step, as `<loss>/weight`."""
    for name, info in detector.losses.items():
        _log(name, "weight", info.weight * factor)


def log_gradient_ratios(detector: DistilledDetector) -> None:
    """Log, after the backward pass, the gradient ratios of a step that measured them.

    They are `<loss>/gradient_ratio`, see :meth:`DistilledDetector.take_gradient_ratios`.
    """
    for name, ratio in detector.take_gradient_ratios().items():
        _log(name, "gradient_ratio", ratio)


def _log(loss: str, what: str, value: float) -> None:
    # Without "loss_": Detectron2 prints every scalar with "loss" in its name to the terminal.
    name = loss[len("loss_") :]
    get_event_storage().put_scalar(f"{name}/{what}", value, smoothing_hint=False)
