"""Features of both networks at a tap of `mgd`, as the loss sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor
from visualizing.matching import MatchingState, TapMatching
from visualizing.models import Sample, network_input

from mgd_det.maths.reducers import REDUCERS
from mgd_det.methods import TapFeatures
from mgd_det.modeling.pairing import pair_maps
from mgd_det.modeling.taps import capture, evaluating, inspect_taps, student_and_teacher_names
from mgd_det.modeling.teacher import Teacher


class TapMaps(NamedTuple):
    """The features of one image at one tap, without padding."""

    teacher: Tensor  # (Ct, H, W)
    target: Tensor  # (Cs, H, W), pooled from the teacher's
    student: Tensor  # (Cs, H, W), behind the norm of the loss
    stride: int  # pixels of the network's input from one position to the next
    extent: tuple[
        float, float
    ]  # height and width of the image, in positions; the last may be in part outside


@torch.no_grad()
def collect(
    student: Any, teacher: Teacher, cfg: CfgNode, state: MatchingState, samples: Sequence[Sample]
) -> list[dict[str, TapMaps]]:
    """Run both networks on images: for each image, what every tap gives.

    Args:
        student: the trained student.
        teacher: its teacher.
        cfg: of the student's run.
        state: the matching, of which nothing is solved again.
        samples: the images, which pass through the networks one by one.
    """
    names = [student_and_teacher_names(tap) for tap in state.taps]
    infos = inspect_taps(student, [s for s, _ in names])
    strides = {name: info.stride for name, info in infos.items() if isinstance(info.stride, int)}
    found = []
    for sample in samples:
        image = network_input(cfg, sample)["image"]
        pixels = student.preprocess_image([{"image": image}]).tensor
        with evaluating(student), capture(student.backbone, [s for s, _ in names], stop=True) as ours:
            student.backbone(pixels)
        theirs = teacher.features([image], cfg.INPUT.FORMAT, [t for _, t in names])
        maps = {}
        for (tap, matching), (s, t) in zip(state.taps.items(), names):
            pair = pair_maps(ours[s], theirs[t], [image], strides[s])
            stride = strides[s]
            teacher_maps, target, student_maps = tap_maps(
                pair, matching, state.settings["DISTILL.MGD.REDUCER"]
            )
            extent = image.shape[1] / stride, image.shape[2] / stride
            maps[tap] = TapMaps(teacher_maps, target, student_maps, stride, extent)
        found.append(maps)
    return found


def tap_maps(pair: TapFeatures, matching: TapMatching, reducer: str) -> tuple[Tensor, Tensor, Tensor]:
    """Pool and normalise one image's features, as the loss does.

    Returns:
        Teacher (Ct, H, W), target (Cs, H, W) and student (Cs, H, W), padding cut off.
    """
    student, teacher, mask, _ = pair
    pool = REDUCERS[reducer]
    # Random drop draws anew in every step; here one draw stands for all, the same whenever it is drawn.
    random = {"generator": torch.Generator().manual_seed(0)} if pool.random else {}
    target = pool.features(teacher, matching.groups, **random)
    student = matching.norm(student, mask)
    rows, columns = student.shape[2:]
    if mask is not None:
        rows, columns = int(mask[0, 0].any(1).sum()), int(mask[0, 0].any(0).sum())
    return teacher[0, :, :rows, :columns], target[0, :, :rows, :columns], student[0, :, :rows, :columns]


def best_learnt_channel(maps: TapMaps) -> int:
    """The student channel that goes together best with its target over the image (Pearson's correlation)."""
    target, student = (x.flatten(1) - x.flatten(1).mean(1, keepdim=True) for x in (maps.target, maps.student))
    lengths = target.norm(dim=1) * student.norm(dim=1)
    # A channel that is the same everywhere has no correlation, and nothing to show.
    correlation = torch.where(lengths > 0, (target * student).sum(1) / lengths.clamp_min(1e-12), -1.0)
    return int(correlation.argmax())
