"""Matching Guided Distillation (MGD; Yue, Deng, Zhou; ECCV 2020) for Detectron2, and its neighbours.

Importing this package loads the functions of :mod:`mgd_det.maths` that others call, which need torch alone.
Detectron2 is imported when one of the other names below is first used.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .maths import losses, margins, matching, reducers

__version__ = "0.1.0"

__all__ = [
    "DistilledDetector",
    "RematchHook",
    "Trainer",
    "add_mgd_config",
    "distill",
    "losses",
    "margins",
    "matching",
    "reducers",
    "register_datasets",
    "student_of",
    "with_unlabeled",
    "wrap",
]

# Public under short names as well: `from mgd_det.matching import assign_groups` works.
for _module in (losses, margins, matching, reducers):
    sys.modules[_module.__name__.replace(".maths.", ".")] = _module

_HOMES = {
    "DistilledDetector": "modeling.detector",
    "RematchHook": "engine.rematch",
    "Trainer": "engine.trainer",
    "add_mgd_config": "config.keys",
    "distill": "config.distilling",
    "register_datasets": "data.datasets",
    "student_of": "modeling.wrapping",
    "with_unlabeled": "engine.unlabeled_loader",
    "wrap": "modeling.wrapping",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Any of these makes the meta-architecture known to Detectron2's registry.
    importlib.import_module(f"{__name__}.modeling.detector")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
