"""The part of the teacher's forward pass that the taps need, in each way to run it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from benchmarking.steps import random_batch
from benchmarking.timing import in_turn
from detectron2.config import CfgNode

from mgd_det.modeling.taps import student_and_teacher_names
from mgd_det.modeling.teacher import TeacherSpec

AS_IS = "as the training"
WAYS: dict[str, dict[str, Any]] = {
    AS_IS: {},
    "CHANNELS_LAST True": {"channels_last": True},
    "DTYPE bfloat16": {"dtype": "bfloat16"},
    "COMPILE True": {"compile": True},
    "CHANNELS_LAST True, DTYPE bfloat16": {"channels_last": True, "dtype": "bfloat16"},
}


def teacher_ways(
    cfg: CfgNode, images: int, size: tuple[int, int], dtype: torch.dtype | None, runs: int
) -> list[dict[str, Any]]:
    """Seconds of a pass for the taps of `mgd`, by the keys of DISTILL.TEACHER.

    Args:
        images, size, dtype: as :class:`benchmarking.steps.Bench`'s.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    plain = replace(TeacherSpec.from_config(cfg), dtype="", channels_last=False, compile=False)
    batch = [x["image"].to(device) for x in random_batch(images, size, classes=1)]
    names = [student_and_teacher_names(tap)[1] for tap in cfg.DISTILL.MGD.TAPS]
    autocast = torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)
    jobs = {}
    for way, changes in WAYS.items():
        torch.manual_seed(0)
        teacher = replace(plain, **changes).build(device)
        jobs[way] = autocast(partial(teacher.features, batch, teacher.input_format, names))
    seconds = in_turn(jobs, runs, device)
    return [
        {"way": way, "seconds": timing._asdict(), "ratio": timing.over(seconds[AS_IS])._asdict()}
        for way, timing in seconds.items()
    ]
