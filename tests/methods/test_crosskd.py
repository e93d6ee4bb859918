"""CrossKD on hand-made predictions, and networks between which it cannot work."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import get_cfg

from mgd_det.config import add_mgd_config
from mgd_det.errors import ConfigError
from mgd_det.methods import BoxMeaning, HeadInfo, LossInfo, Prediction, PredictionPair, TapInfo
from mgd_det.methods.crosskd import CrossKD

NAN = float("nan")


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def divergence(p: float, q: float) -> float:
    """Of a Bernoulli q from p."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def prediction(probabilities: list, *boxes: list[float]) -> Prediction:
    return Prediction(torch.tensor(probabilities).logit(), torch.tensor(boxes))


# The second row's classes agree; its boxes do not touch.
STUDENT = prediction([[0.5, 0.2], [0.3, 0.1]], [0.0, 0, 2, 2], [0.0, 0, 1, 1])
TEACHER = prediction([[0.9, 0.1], [0.3, 0.1]], [1.0, 0, 3, 2], [2.0, 0, 3, 1])
CLASSES = 0.4 * divergence(0.9, 0.5) + 0.1 * divergence(0.1, 0.2)
FIRST_BOX, SECOND_BOX = 0.9 * (1 - 1 / 3), 0.3 * (1 + 1 / 3)


def values(pair: PredictionPair, weight: float = 1.0, box_weight: float = 1.0) -> dict[str, float]:
    method = CrossKD(weight=weight, box_weight=box_weight)
    losses = method({"cross_predictions": pair})
    assert list(losses) == list(method.losses)
    return {name: loss.item() for name, loss in losses.items()}


def test_losses_by_hand():
    """Divided by the detector's own divisor; a box counts by the largest probability of its row."""
    found = values(PredictionPair(STUDENT, TEACHER, None, 4.0), weight=2.0, box_weight=3.0)
    assert found == pytest.approx(
        {"loss_crosskd_cls": 2 * CLASSES / 4, "loss_crosskd_box": 3 * (FIRST_BOX + SECOND_BOX) / 4}, rel=1e-4
    )


def test_without_a_divisor_it_is_the_soft_number_of_objects():
    """0.9 squared and 0.3 squared are less than 1, twice as many rows are not."""
    found = values(PredictionPair(STUDENT, TEACHER, None))
    assert found["loss_crosskd_cls"] == pytest.approx(CLASSES, rel=1e-4)
    doubled = (Prediction(*(torch.cat([x, x]) for x in side[:2])) for side in (STUDENT, TEACHER))
    found = values(PredictionPair(*doubled, None))
    assert found["loss_crosskd_cls"] == pytest.approx(2 * CLASSES / (2 * (0.81 + 0.09)), rel=1e-4)


def test_rows_that_do_not_count_may_hold_anything():
    student, teacher = (Prediction(*(x.clone() for x in side[:2])) for side in (STUDENT, TEACHER))
    for side in (student, teacher):
        for tensor in side[:2]:
            tensor[1] = NAN
            tensor.requires_grad_(side is student)
    pair = PredictionPair(student, teacher, torch.tensor([True, False]), 4.0)
    losses = CrossKD(weight=1.0, box_weight=1.0)({"cross_predictions": pair})
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {"loss_crosskd_cls": CLASSES / 4, "loss_crosskd_box": FIRST_BOX / 4}, rel=1e-4
    )
    sum(losses.values()).backward()
    assert all(tensor.grad[0].any() and not tensor.grad[1].any() for tensor in student[:2])


def test_half_precision_predictions_give_float32_losses():
    student, teacher = (Prediction(*(x.bfloat16() for x in side[:2])) for side in (STUDENT, TEACHER))
    losses = CrossKD(weight=1.0, box_weight=1.0)(
        {"cross_predictions": PredictionPair(student, teacher, None, 4.0)}
    )
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert losses["loss_crosskd_box"].item() == pytest.approx((FIRST_BOX + SECOND_BOX) / 4, rel=0.02)


# From the config.


def head(kind: str, channels: int = 8) -> TapInfo:
    info = HeadInfo(kind, 2, BoxMeaning({}), 0.01, kind == "proposals")
    return TapInfo(channels, [8], True, head=info)


def from_config(student: TapInfo, teacher: TapInfo, **keys) -> CrossKD:
    cfg = get_cfg()
    add_mgd_config(cfg)
    for key, value in keys.items():
        cfg.DISTILL.CROSSKD[key] = value
    inspected = ((lambda taps, info=info: dict.fromkeys(taps, info)) for info in (student, teacher))
    return CrossKD.from_config(cfg.DISTILL.CROSSKD, *inspected)


@pytest.mark.parametrize(("student", "teacher"), [("anchors", "anchors"), ("anchors", "points")])
def test_any_two_dense_heads_of_one_width_work(student, teacher):
    method = from_config(head(student), head(teacher), WEIGHT=2.0)
    assert method.losses == {
        "loss_crosskd_cls": LossInfo("cross_predictions", 2.0),
        "loss_crosskd_box": LossInfo("cross_predictions", 1.0),
    }
    assert [method.weight_key(loss) for loss in method.losses] == ["WEIGHT", "BOX_WEIGHT"]
    assert list(from_config(head(student), head(teacher), BOX_WEIGHT=0.0).losses) == ["loss_crosskd_cls"]


@pytest.mark.parametrize(
    ("student", "teacher", "keys", "message"),
    [
        (head("proposals"), head("anchors"), {}, r"METHODS = 'crosskd': the student has no dense head"),
        (head("points"), head("proposals"), {}, r"METHODS = 'crosskd': the teacher has no dense head"),
        (head("anchors"), head("anchors", 16), {}, r"'crosskd': the student's head has 8 channels and .* 16"),
        (head("anchors"), head("anchors"), {"WEIGHT": -1.0}, r"CROSSKD\.WEIGHT = -1\.0"),
        (head("anchors"), head("anchors"), {"BOX_WEIGHT": NAN}, r"CROSSKD\.BOX_WEIGHT = nan"),
    ],
)
def test_what_cannot_work_is_named(student, teacher, keys, message):
    with pytest.raises(ConfigError, match=message):
        from_config(student, teacher, **keys)
