"""Learning from the teacher's predictions: classes as soft targets, boxes where the teacher is confident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mgd_det.maths.soft_targets import (
    foreground_confidence,
    sigmoid_soft_loss,
    softmax_soft_loss,
    weighted_box_loss,
    weighted_sigmoid_loss,
)

from .base import (
    PREDICTIONS,
    Features,
    HeadInfo,
    Inspect,
    LossInfo,
    Method,
    PredictionPair,
    TapInfo,
    predictions_in,
    register_method,
)
from .same_predictions import check_box_outputs, check_predictions
from .settings import above_zero, number

if TYPE_CHECKING:
    from yacs.config import CfgNode


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
    def from_config(cls, cfg: CfgNode, student: Inspect, teacher: Inspect) -> Logits:
        key = "DISTILL.LOGITS"
        head = student([PREDICTIONS])[PREDICTIONS].head
        assert head is not None  # this tap always has one
        return cls(
            weight=number(f"{key}.WEIGHT", cfg.WEIGHT),
            box_weight=number(f"{key}.BOX_WEIGHT", cfg.BOX_WEIGHT),
            gamma=number(f"{key}.GAMMA", cfg.GAMMA),
            temperature=above_zero(f"{key}.TEMPERATURE", cfg.TEMPERATURE),
            head=head,
        )

    def attach(self, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]) -> None:
        theirs = teacher[PREDICTIONS].head
        assert theirs is not None
        check_predictions("logits", self.head, theirs)
        if self.box_weight:
            check_box_outputs("logits", self.head, theirs, "set DISTILL.LOGITS.BOX_WEIGHT 0")

    @property
    def losses(self) -> dict[str, LossInfo]:
        losses = {"loss_logits_cls": LossInfo(PREDICTIONS, self.weight)}
        if self.box_weight:
            losses["loss_logits_box"] = LossInfo(PREDICTIONS, self.box_weight)
            if self.head.kind == "points":
                losses["loss_logits_ctr"] = LossInfo(PREDICTIONS, self.box_weight)
        return losses

    def weight_key(self, loss: str) -> str:
        return "WEIGHT" if loss == "loss_logits_cls" else "BOX_WEIGHT"

    def forward(self, features: Features) -> dict[str, Tensor]:
        student, teacher, mask, _ = pair = predictions_in(features)
        if self.head.softmax:
            loss = softmax_soft_loss(student.scores, teacher.scores, self.temperature)
        else:
            loss = sigmoid_soft_loss(student.scores, teacher.scores, mask, self.gamma)
        losses = {"loss_logits_cls": loss * self.weight}
        if self.box_weight:
            weight = self._box_weights(pair)
            loss = weighted_box_loss(student.boxes.reshape(-1, 4), teacher.boxes.reshape(-1, 4), weight)
            losses["loss_logits_box"] = loss * self.box_weight
            if student.centerness is not None and teacher.centerness is not None:
                loss = weighted_sigmoid_loss(student.centerness, teacher.centerness, weight)
                losses["loss_logits_ctr"] = loss * self.box_weight
        return losses

    def _box_weights(self, pair: PredictionPair) -> Tensor:
        """Returns the weight of each box: the teacher's confidence that it is one of an object."""
        _, teacher, mask, _ = pair
        if self.head.kind == "proposals":
            scores = teacher.scores.float()
            found = scores.softmax(1)[:, :-1] if self.head.softmax else scores.sigmoid()
            # One box for each class, (R, 4 K), or one for all.
            return found.flatten() if teacher.boxes.shape[1] > 4 else found.sum(1)
        weight = foreground_confidence(teacher.scores)
        return weight if mask is None else torch.where(mask, weight, 0.0)
