"""Matching Guided Distillation (MGD; Yue, Deng, Zhou; ECCV 2020) for Detectron2, and its neighbours.

The modules of maths (`matching`, `reducers`, `margins`, `losses`, `norms`, `statistics`) import no
Detectron2, and neither does this package before one of the names below is used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "DistilledDetector": "detector",
    "RematchHook": "rematch",
    "Trainer": "trainer",
    "add_mgd_config": "config",
    "register_datasets": "datasets",
}
_MODULES = ("losses", "margins", "matching", "reducers")

__all__ = [
    "DistilledDetector",
    "RematchHook",
    "Trainer",
    "add_mgd_config",
    "losses",
    "margins",
    "matching",
    "reducers",
    "register_datasets",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        # Any of these makes the meta-architecture known to Detectron2's registry.
        importlib.import_module(f"{__name__}.detector")
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
