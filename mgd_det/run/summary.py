"""The last lines of a run's log: what it reached, the files, and the next command."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils.file_io import PathManager

from mgd_det.config import uses_teacher

from .metrics import read_metrics
from .output import TEACHER_FOLDER

AP = "bbox/AP"
# One figure for each kind of evaluation, from 0 to 100; the first that was measured stands for a run.
HEADLINES = (AP, "segm/AP", "keypoints/AP", "panoptic_seg/PQ", "sem_seg/mIoU", "box_proposals/AR@100")


def summary(cfg: CfgNode, results: Mapping[str, Any] | None, seconds: float) -> str:
    """Returns what student, teacher and baseline reached, as far as it is known, the files, the next command.

    Args:
        cfg: the config of the run.
        results: the results of its last evaluation, None if there was none.
        seconds: the time that this start took.
    """
    folder = cfg.OUTPUT_DIR
    lines = [f"finished after {timedelta(seconds=round(seconds))}: {folder}"]
    for tested in cfg.DATASETS.TEST:
        found = results or {}
        found = found if len(cfg.DATASETS.TEST) == 1 else found.get(tested, {})
        lines += reached(cfg, tested, found)
    student = os.path.join(folder, "student_config.yaml")
    weights = os.path.join(folder, "model_final.pth")
    lines.append(f"the student, for stock Detectron2: {student} and {weights}")
    lines.append(f"look at it: python tools/visualize.py --run {folder}")
    return "\n  ".join(lines)


def reached(cfg: CfgNode, tested: str, results: Mapping[str, Any]) -> list[str]:
    """Returns lines on the results of one data set, none if nothing is known of them."""
    measured = flatten_results_dict(dict(results))
    metric = next((metric for metric in HEADLINES if metric in measured), None)
    if metric is None:
        return []
    value, short = measured[metric], short_name(metric)
    if math.isnan(value):  # COCO evaluation gives NaN without detections
        line = f"there is no {short}: the student finds nothing in {tested}"
    else:
        ap50 = f", AP50 {measured['bbox/AP50']:.1f}" if metric == AP and "bbox/AP50" in measured else ""
        line = f"{short} {value:.1f}{ap50} on {tested}"
    return [line, *comparison(cfg, tested, metric, value)]


def short_name(metric: str) -> str:
    """Returns what a metric is called in a sentence."""
    return "AP" if metric == AP else metric


def comparison(cfg: CfgNode, tested: str, metric: str, value: float) -> list[str]:
    """Returns lines that place the student's result on a data set between baseline and teacher."""
    if not uses_teacher(cfg):
        return []
    short = short_name(metric)
    teacher = last_values(os.path.join(cfg.OUTPUT_DIR, TEACHER_FOLDER), tested).get(metric)
    if teacher is None:
        teacher = last_values(os.path.dirname(cfg.DISTILL.TEACHER.CONFIG_FILE), tested).get(metric)
    baseline = last_values(cfg.DISTILL.BASELINE, tested).get(metric) if cfg.DISTILL.BASELINE else None
    lines = []
    if teacher is None:
        lines.append(f"the teacher's {short} there is not known: --eval-teacher measures it")
    else:
        lines.append(f"the teacher's {short} there is {teacher:.1f}")
    if baseline is None:
        lines.append(
            f"the {short} of the student alone is not known: name the folder of its run in DISTILL.BASELINE"
        )
    else:
        gained = f"the {short} of the student alone is {baseline:.1f}"
        if not math.isnan(value):
            gained += f": distilling gained {value - baseline:+.1f}"
            if teacher is not None and teacher > baseline:
                gained += f", {(value - baseline) / (teacher - baseline):.0%} of the gap to the teacher"
        lines.append(gained)
    return lines


def last_values(folder: str, tested: str) -> dict[str, float]:
    """Returns the figures in `HEADLINES` of a run's last evaluation on a data set.

    Returns:
        Metric -> value; empty if the run's files tell none.
    """
    try:
        with PathManager.open(os.path.join(folder, "config.yaml")) as f:
            names = list(yaml.safe_load(f)["DATASETS"]["TEST"])
        lines = read_metrics(os.path.join(folder, "metrics.json"))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return {}
    prefix = "" if len(names) == 1 else f"{tested}/"
    found: dict[str, float] = {}
    for line in lines if tested in names else ():
        found.update({metric: line[prefix + metric] for metric in HEADLINES if prefix + metric in line})
    return found
