"""CrossKD: the teacher's head predicts from the student's features (Wang et al., CVPR 2024).

The student's features half-way through its head go on through the rest of the teacher's frozen head, and what
comes out imitates the teacher's own predictions. So the teacher and the labels pull at different places of
the student's head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgd_det.errors import ConfigError
from mgd_det.maths.soft_targets import sigmoid_soft_loss, soft_foreground, weighted_giou_loss

from .base import (
    CROSS_PREDICTIONS,
    Features,
    Inspect,
    LossInfo,
    Method,
    predictions_in,
    register_method,
)
from .settings import number

if TYPE_CHECKING:
    from yacs.config import CfgNode

GAMMA = 1.0  # exponent of the difference by which an element of the class loss counts


@register_method("crosskd")
class CrossKD(Method):
    """Classes by cross entropy to the teacher's probabilities, boxes by GIoU where the teacher is confident.

    Args:
        weight: of the classification loss.
        box_weight: of the box loss; 0 leaves it out.
    """

    taps = (CROSS_PREDICTIONS,)

    def __init__(self, *, weight: float, box_weight: float) -> None:
        super().__init__()
        self.weight, self.box_weight = weight, box_weight

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Inspect, teacher: Inspect) -> CrossKD:
        infos = {"student": student(cls.taps), "teacher": teacher(cls.taps)}
        for network, info in infos.items():
            head = info[CROSS_PREDICTIONS].head
            assert head is not None  # this tap always has one
            if head.kind == "proposals":
                raise ConfigError(
                    "DISTILL.METHODS",
                    "crosskd",
                    f"the {network} has no dense head, as RetinaNet and FCOS have",
                    'Choose such a student and such a teacher, or leave "crosskd" out.',
                )
        ours, theirs = (info[CROSS_PREDICTIONS].channels for info in infos.values())
        if ours != theirs:
            raise ConfigError(
                "DISTILL.METHODS",
                "crosskd",
                f"the student's head has {ours} channels and the teacher's {theirs}",
                'Give both the same MODEL.FPN.OUT_CHANNELS, or leave "crosskd" out.',
            )
        return cls(
            weight=number("DISTILL.CROSSKD.WEIGHT", cfg.WEIGHT),
            box_weight=number("DISTILL.CROSSKD.BOX_WEIGHT", cfg.BOX_WEIGHT),
        )

    @property
    def losses(self) -> dict[str, LossInfo]:
        losses = {"loss_crosskd_cls": LossInfo(CROSS_PREDICTIONS, self.weight)}
        if self.box_weight:
            losses["loss_crosskd_box"] = LossInfo(CROSS_PREDICTIONS, self.box_weight)
        return losses

    def weight_key(self, loss: str) -> str:
        return "WEIGHT" if loss == "loss_crosskd_cls" else "BOX_WEIGHT"

    def forward(self, features: Features) -> dict[str, Tensor]:
        student, teacher, mask, normalizer = predictions_in(features, CROSS_PREDICTIONS)
        # A student that has not computed a loss of its own yet has no divisor.
        divisor = soft_foreground(teacher.scores, mask) if normalizer is None else normalizer
        classes = sigmoid_soft_loss(student.scores, teacher.scores, mask, GAMMA, divisor)
        losses = {"loss_crosskd_cls": classes * self.weight}
        if self.box_weight:
            confidence = teacher.scores.float().amax(1).sigmoid()
            if mask is not None:
                confidence = torch.where(mask, confidence, 0.0)
            boxes = weighted_giou_loss(student.boxes, teacher.boxes, confidence) / divisor
            losses["loss_crosskd_box"] = boxes * self.box_weight
        return losses
