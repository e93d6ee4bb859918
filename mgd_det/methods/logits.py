"""Learning from the teacher's predictions: classes as soft targets, boxes where the teacher is sure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..soft_targets import sigmoid_soft_loss, softmax_soft_loss, weighted_box_loss
from .base import (
    PREDICTIONS,
    Features,
    HeadInfo,
    Inspect,
    LossInfo,
    Method,
    PredictionPair,
    TapInfo,
    register_method,
)
from .settings import number


@register_method("logits")
class Logits(Method):
    """Distils the dense predictions of RetinaNet and FCOS, or the box head's of Faster and Mask R-CNN.

    Args:
        weight: of the classification loss.
        box_weight: of the box loss, and of FCOS's centerness; 0 leaves them out.
        gamma: sigmoid classifiers: how much more an element counts that the student has wrong.
        temperature: softmax classifiers: T of both distributions.
        head: of the student.
    """

    taps = (PREDICTIONS,)

    def __init__(
        self, *, weight: float, box_weight: float, gamma: float, temperature: float, head: HeadInfo
    ) -> None:
        super().__init__()
        self.weight, self.box_weight = weight, box_weight
        self.gamma, self.temperature, self.head = gamma, temperature, head

    @classmethod
    def from_config(cls, cfg: Any, student: Inspect, teacher: Inspect) -> Logits:
        key = "DISTILL.LOGITS"
        head = student([PREDICTIONS])[PREDICTIONS].head
        assert head is not None  # which this tap always has
        if not cfg.TEMPERATURE > 0:
            raise ConfigError(f"{key}.TEMPERATURE", cfg.TEMPERATURE, "not over 0", "Give a number like 1.0.")
        return cls(
            weight=number(f"{key}.WEIGHT", cfg.WEIGHT),
            box_weight=number(f"{key}.BOX_WEIGHT", cfg.BOX_WEIGHT),
            gamma=number(f"{key}.GAMMA", cfg.GAMMA),
            temperature=cfg.TEMPERATURE,
            head=head,
        )

    def attach(self, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]) -> None:
        ours, theirs = self.head, teacher[PREDICTIONS].head
        assert theirs is not None
        remedy = 'Choose a teacher that predicts the same, or leave "logits" out of DISTILL.METHODS.'
        if (ours.kind, ours.softmax) != (theirs.kind, theirs.softmax):
            problem = f"the student predicts {_described(ours)}, and the teacher {_described(theirs)}"
            raise ConfigError("DISTILL.METHODS", "logits", problem, remedy)
        if ours.num_classes != theirs.num_classes:
            raise ConfigError(
                "DISTILL.METHODS",
                "logits",
                f"the student has {ours.num_classes} classes (NUM_CLASSES of its MODEL keys), and the "
                f"teacher {theirs.num_classes}",
                remedy,
            )
        if ours.boxes != theirs.boxes and (self.box_weight or ours.kind == "anchors"):
            raise ConfigError(
                "DISTILL.METHODS",
                "logits",
                f"the two networks' boxes mean different things, {ours.boxes} and {theirs.boxes}",
                "Give both the same MODEL.ANCHOR_GENERATOR and BBOX_REG_WEIGHTS; a two-stage detector can do "
                "with DISTILL.LOGITS.BOX_WEIGHT 0.",
            )

    @property
    def losses(self) -> dict[str, LossInfo]:
        losses = {"loss_logits_cls": LossInfo(PREDICTIONS, self.weight)}
        if self.box_weight:
            losses["loss_logits_box"] = LossInfo(PREDICTIONS, self.box_weight)
            if self.head.kind == "points":
                losses["loss_logits_ctr"] = LossInfo(PREDICTIONS, self.box_weight)
        return losses

    def forward(self, features: Features) -> dict[str, Tensor]:
        student, teacher, mask = pair = features[PREDICTIONS]
        if self.head.softmax:
            loss = softmax_soft_loss(student.scores, teacher.scores, self.temperature)
        else:
            loss = sigmoid_soft_loss(student.scores, teacher.scores, mask, self.gamma)
        losses = {"loss_logits_cls": loss * self.weight}
        if self.box_weight:
            losses["loss_logits_box"] = self._box_loss(pair) * self.box_weight
            if student.centerness is not None:
                rows = (student.centerness[:, None], teacher.centerness[:, None])
                losses["loss_logits_ctr"] = sigmoid_soft_loss(*rows, mask, self.gamma) * self.box_weight
        return losses

    def _box_loss(self, pair: PredictionPair) -> Tensor:
        student, teacher, mask = pair
        scores = teacher.scores.float()
        if self.head.kind == "proposals":
            found = (
                scores.softmax(1)[:, :-1]
                if self.head.softmax
                else scores.sigmoid()[:, : self.head.num_classes]
            )
            # One box for each class, (R, 4 K), or one for all.
            each = student.boxes.shape[1] > 4
            weight = found.flatten() if each else found.sum(1)
            return weighted_box_loss(student.boxes.reshape(-1, 4), teacher.boxes.reshape(-1, 4), weight)
        weight = scores.sigmoid().amax(1)
        if teacher.centerness is not None:
            weight = weight * teacher.centerness.float().sigmoid()
        if mask is not None:
            weight = torch.where(mask, weight, 0.0)
        return weighted_box_loss(student.boxes, teacher.boxes, weight)


def _described(head: HeadInfo) -> str:
    return f"{head.kind} by {'softmax' if head.softmax else 'sigmoid'}"
