"""Comparison of the detections of two programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

BOX_TOLERANCE = 0.1  # pixels
SCORE_TOLERANCE = 1e-3  # of scores, and of the probabilities of masks


class Disagreement(Exception):
    """An exported network detects something else than PyTorch; the text says what."""


class Agreement(NamedTuple):
    """The largest differences between the detections of two programs."""

    detections: int
    box: float  # pixels
    score: float

    def __add__(self, other: object) -> Agreement:
        assert isinstance(other, Agreement)
        box, score = max(self.box, other.box), max(self.score, other.score)
        return Agreement(self.detections + other.detections, box, score)


def compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Agreement:
    """Compare detections, in any order: those of nearly the same score may change places.

    Args:
        expected, found: pred_boxes (N, 4), pred_classes (N,), scores (N,), pred_masks (N, 1, M, M) or not.

    Raises:
        Disagreement: their number or classes differ, or anything else by more than the tolerance.
    """
    ours, theirs = len(expected["scores"]), len(found["scores"])
    if ours != theirs:
        raise Disagreement(f"it finds {theirs} objects where PyTorch finds {ours}")
    if not ours:
        return Agreement(0, 0.0, 0.0)
    if not all(found[name].isfinite().all() for name in ("pred_boxes", "scores")):
        raise Disagreement("its boxes or scores are not finite")
    boxes = torch.cdist(expected["pred_boxes"].double(), found["pred_boxes"].double(), p=float("inf"))
    scores = (expected["scores"][:, None] - found["scores"]).abs().double()
    other_class = expected["pred_classes"][:, None] != found["pred_classes"]
    rows, columns = linear_sum_assignment((boxes + scores + 1e6 * other_class).numpy())
    if other_class[rows, columns].any():
        raise Disagreement("it finds objects of other classes than PyTorch")
    box, score = boxes[rows, columns].max().item(), scores[rows, columns].max().item()
    if "pred_masks" in expected:
        masks = (expected["pred_masks"][rows] - found["pred_masks"][columns]).abs().max().item()
        score = max(score, masks)
    if not (box <= BOX_TOLERANCE and score <= SCORE_TOLERANCE):
        raise Disagreement(f"boxes differ by up to {box:.3g} px from PyTorch's, scores by up to {score:.3g}")
    return Agreement(ours, box, score)
