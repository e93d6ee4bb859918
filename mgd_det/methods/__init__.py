"""Distillation methods, one module each, behind one interface."""

from . import mgd  # noqa: F401  (registers itself)
from .base import (
    MatchReport,
    Method,
    TapFeatures,
    TapInfo,
    find_method,
    method_names,
    register_method,
)

__all__ = [
    "MatchReport",
    "Method",
    "TapFeatures",
    "TapInfo",
    "find_method",
    "method_names",
    "register_method",
]
