"""Distillation methods, one module each, behind one interface."""

from . import mgd  # noqa: F401  (registers itself)
from .base import (
    LossInfo,
    MatchReport,
    Method,
    TapFeatures,
    TapInfo,
    find_method,
    method_names,
    register_method,
)

__all__ = [
    "LossInfo",
    "MatchReport",
    "Method",
    "TapFeatures",
    "TapInfo",
    "find_method",
    "method_names",
    "register_method",
]
