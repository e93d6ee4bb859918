"""The way back: the config of the student alone, for the code that it would be trained with undistilled."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from .functions import config_with
from .keys import DISTILLER, own_keys
from .lazy import lazy_student, load_lazy, save_lazy
from .values import RUN_VALUES


def student_config(cfg: CfgNode) -> CfgNode:
    """Returns the config of the student alone, without the keys of this project.

    Stock Detectron2 builds the student from it, or the code of the project whose keys it holds. A key that
    another project has as well stays: one that a function in DISTILL.CONFIG_FUNCTIONS adds, and a
    SOLVER.OPTIMIZER whose value cannot be one of ours. So does MODEL.TORCHVISION of a student that is made
    from a network of torchvision or timm.
    """
    student = cfg.clone()
    student.defrost()
    if student.MODEL.META_ARCHITECTURE == DISTILLER:
        student.MODEL.META_ARCHITECTURE = student.DISTILL.STUDENT_ARCHITECTURE
    names = student.DISTILL.CONFIG_FUNCTIONS
    del student["DISTILL"]
    ours = own_keys()
    if student.MODEL.TORCHVISION.NAME:
        del ours.MODEL["TORCHVISION"]
    if RUN_VALUES["SOLVER.OPTIMIZER"].problem(student.SOLVER.get("OPTIMIZER")):
        del ours.SOLVER["OPTIMIZER"]
    _drop(student, ours, config_with(names))
    return student


def _drop(cfg: CfgNode, keys: CfgNode, kept: CfgNode) -> None:
    """Remove keys from a config, except those that a third config has."""
    for key, value in keys.items():
        if key not in cfg:
            continue
        if isinstance(value, dict) and isinstance(kept.get(key), dict):
            _drop(cfg[key], value, kept[key])
        elif key not in kept:
            del cfg[key]


def save_student_config(cfg: CfgNode) -> None:
    """Write the student alone to `student_config.yaml` in OUTPUT_DIR.

    It is the student's yaml config; or, of a student from a LazyConfig, a LazyConfig with its `model`.
    """
    PathManager.mkdirs(cfg.OUTPUT_DIR)
    path = os.path.join(cfg.OUTPUT_DIR, "student_config.yaml")
    source = lazy_student(cfg)
    if source is not None:
        save_lazy(load_lazy(*source, "DISTILL.STUDENT_ARCHITECTURE", "DISTILL.STUDENT_OPTS"), path)
        return
    with PathManager.open(path, "w") as f:
        f.write(student_config(cfg).dump())
