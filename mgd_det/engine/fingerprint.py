"""Fingerprints of a run's seed, batch and data, which a resumed run compares with its checkpoint's."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from mgd_det.errors import ConfigError

logger = logging.getLogger("detectron2." + __name__)

_CHUNK = 2**20


def fingerprint(cfg: CfgNode) -> dict[str, object]:
    """Returns, by config key, what the batches of a training depend on, as plain values.

    Data sets are told apart by their names and the contents of their annotation files; those that a function
    registers by their names alone.
    """
    return {
        "SEED": cfg.SEED,
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
        "DATASETS.TRAIN": _described(cfg.DATASETS.TRAIN),
        "DATASETS.UNLABELED": _described(cfg.DATASETS.UNLABELED),
        "DATALOADER.UNLABELED_RATIO": cfg.DATALOADER.UNLABELED_RATIO,
    }


def check_fingerprint(saved: Mapping[str, Any], now: Mapping[str, object], *, exact: bool) -> None:
    """Compare the fingerprint in a checkpoint with that of the run that resumes from it.

    Args:
        saved: of the checkpoint; empty in those of earlier versions.
        now: of this run.
        exact: if True, a difference is an error; if False, it is logged.

    Raises:
        ConfigError: they differ, and the run is to go on exactly.
    """
    for key, value in now.items():
        before = saved.get(key, value)
        if before == value:
            continue
        if exact:
            problem = f"the checkpoint was trained with {before}, so the run cannot go on exactly"
            remedy = "Resume with that, or set DISTILL.EXACT_RESUME False."
            raise ConfigError(key, value, problem, remedy)
        logger.warning("--resume: %s changes from %s to %s", key, before, value)


def _described(names: Sequence[str]) -> list[str]:
    return [f"{name} {_digest(name)}".strip() for name in names]


def _digest(name: str) -> str:
    path = getattr(MetadataCatalog.get(name), "json_file", "")
    if not path or not os.path.isfile(path):
        return ""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
