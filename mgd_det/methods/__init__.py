"""Distillation methods, one module each, behind one interface."""

from . import imitation, logits, lsh, mgd  # noqa: F401  (they register themselves)
from .base import (
    HEAD,
    HEAD_TAPS,
    PREDICTIONS,
    AssignmentControl,
    Features,
    HeadInfo,
    LossInfo,
    MatchReport,
    Method,
    Prediction,
    PredictionPair,
    TapFeatures,
    TapInfo,
    find_method,
    method_defaults,
    register_method,
)

__all__ = [
    "HEAD",
    "HEAD_TAPS",
    "PREDICTIONS",
    "AssignmentControl",
    "Features",
    "HeadInfo",
    "LossInfo",
    "MatchReport",
    "Method",
    "Prediction",
    "PredictionPair",
    "TapFeatures",
    "TapInfo",
    "find_method",
    "method_defaults",
    "register_method",
]
