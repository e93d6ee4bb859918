"""Turning a stock config into one of a distilled training."""

from __future__ import annotations

from detectron2.config import CfgNode

from .keys import DISTILLER, add_mgd_config


def distill(cfg: CfgNode, teacher: str, weights: str = "") -> CfgNode:
    """Name a teacher in the config of a stock detector, which becomes the student.

    Args:
        cfg: a config of a stock meta-architecture, with or without this project's keys. It is changed in
            place, and is frozen afterwards if it was before.
        teacher: a value of `DISTILL.TEACHER.CONFIG_FILE`.
        weights: a value of `DISTILL.TEACHER.WEIGHTS`.

    Returns:
        The same config, with `MODEL.META_ARCHITECTURE` "DistilledDetector".
    """
    frozen = cfg.is_frozen()
    cfg.defrost()
    add_mgd_config(cfg)
    if cfg.MODEL.META_ARCHITECTURE != DISTILLER:
        cfg.DISTILL.STUDENT_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE
        cfg.MODEL.META_ARCHITECTURE = DISTILLER
    cfg.DISTILL.ENABLED = True
    cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.WEIGHTS = teacher, weights
    if frozen:
        cfg.freeze()
    return cfg
