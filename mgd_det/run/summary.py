"""The last lines of a run's log: the APs, the files, and the next command."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from .metrics import read_metrics

AP = "bbox/AP"


def summary(cfg: CfgNode, results: Mapping[str, Any] | None, seconds: float) -> str:
    """Returns the APs, those of teacher and baseline if earlier runs tell them, the files, the next command.

    Args:
        cfg: the config of the run.
        results: the results of its last evaluation, None if there was none.
        seconds: the time that this start took.
    """
    folder = cfg.OUTPUT_DIR
    lines = [f"finished after {timedelta(seconds=round(seconds))}: {folder}"]
    for tested in cfg.DATASETS.TEST:
        found = results or {}
        box = (found if len(cfg.DATASETS.TEST) == 1 else found.get(tested, {})).get("bbox")
        if not box:
            continue
        if math.isnan(box["AP"]):  # COCO evaluation gives NaN without detections
            lines.append(f"there is no AP: the student finds nothing in {tested}")
        else:
            lines.append(f"AP {box['AP']:.1f}, AP50 {box['AP50']:.1f} on {tested}")
        lines += comparison(cfg, tested, box["AP"])
    student = os.path.join(folder, "student_config.yaml")
    weights = os.path.join(folder, "model_final.pth")
    lines.append(f"the student, for stock Detectron2: {student} and {weights}")
    lines.append(f"look at it: python tools/visualize.py --run {folder}")
    return "\n  ".join(lines)


def comparison(cfg: CfgNode, tested: str, ap: float) -> list[str]:
    """Returns lines that place the student's AP on one data set between the baseline's and the teacher's."""
    if not cfg.DISTILL.ENABLED:
        return []
    teacher = last_ap(os.path.join(cfg.OUTPUT_DIR, "teacher"), tested)  # of an --eval-teacher
    if teacher is None:
        teacher = last_ap(os.path.dirname(cfg.DISTILL.TEACHER.CONFIG_FILE), tested)
    baseline = last_ap(cfg.DISTILL.BASELINE, tested) if cfg.DISTILL.BASELINE else None
    lines = []
    if teacher is None:
        lines.append("the teacher's AP there is not known: --eval-teacher measures it")
    else:
        lines.append(f"the teacher's AP there is {teacher:.1f}")
    if baseline is None:
        lines.append(
            "the AP of the student alone is not known: name the folder of its run in DISTILL.BASELINE"
        )
    else:
        gained = f"the AP of the student alone is {baseline:.1f}"
        if not math.isnan(ap):
            gained += f": distilling gained {ap - baseline:+.1f}"
            if teacher is not None and teacher > baseline:
                gained += f", {(ap - baseline) / (teacher - baseline):.0%} of the gap to the teacher"
        lines.append(gained)
    return lines


def last_ap(folder: str, tested: str) -> float | None:
    """Returns the box AP of a run's last evaluation on a data set, None if its files do not tell it."""
    try:
        with PathManager.open(os.path.join(folder, "config.yaml")) as f:
            names = list(yaml.safe_load(f)["DATASETS"]["TEST"])
        key = AP if len(names) == 1 else f"{tested}/{AP}"
        lines = read_metrics(os.path.join(folder, "metrics.json"))
        found = [line[key] for line in lines if key in line]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    return found[-1] if found and tested in names else None
