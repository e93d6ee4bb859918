"""Learning from predictions: hand-made numbers, and pairs of networks that cannot be compared."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import get_cfg

from mgd_det.config import add_mgd_config
from mgd_det.errors import ConfigError
from mgd_det.methods import BoxMeaning, HeadInfo, LossInfo, Prediction, PredictionPair, TapInfo
from mgd_det.methods.logits import Logits

NAN = float("nan")
BOXES = {
    "anchors": BoxMeaning({"weights": [1.0]}, anchors=[[[0, 0, 8, 8]]], anchor_offset=0.0),
    "points": BoxMeaning({}, anchors=[[[0, 0, 8, 8]]], anchor_offset=0.5),
    "proposals": BoxMeaning({"weights": [10.0]}, columns=8),
}


def head(kind: str, boxes=(), **changes) -> HeadInfo:
    """A head of a kind, with other fields; `boxes` are fields of its boxes' meaning."""
    meaning = BOXES[kind]._replace(**dict(boxes))
    return HeadInfo(kind, 2, meaning, 0.01, kind == "proposals")._replace(**changes)


def logits(kind: str, **options) -> Logits:
    softmax = options.pop("softmax", kind == "proposals")
    settings = {"weight": 1.0, "box_weight": 1.0, "gamma": 0.0, "temperature": 1.0, **options}
    return Logits(**settings, head=head(kind, softmax=softmax))


def values(method: Logits, student: Prediction, teacher: Prediction, mask=None) -> dict[str, float]:
    losses = method({"predictions": PredictionPair(student, teacher, mask)})
    assert list(losses) == list(method.losses)
    return {name: loss.item() for name, loss in losses.items()}


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def divergence(p: float, q: float) -> float:
    """Of a Bernoulli q from p."""
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def test_anchors_by_hand():
    """The teacher's largest probabilities are 0.9 and 0.8: the rows count 0.81 and 0.64, 1.45 together."""
    student = Prediction(
        torch.tensor([[0.0, 0.0], [0.0, logit(0.2)]]), torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0] * 4])
    )
    teacher = Prediction(
        torch.tensor([[logit(0.9), 0.0], [0.0, logit(0.8)]]), torch.tensor([[1.0, 2.0, 3.0, 2.0], [1.0] * 4])
    )
    found = values(logits("anchors", weight=2.0, box_weight=3.0), student, teacher)
    cls = (divergence(0.9, 0.5) + divergence(0.8, 0.2)) / 1.45
    # L1 of 2 in the first row, 4 in the second.
    box = (0.81 * 2 + 0.64 * 4) / 1.45
    assert found == pytest.approx({"loss_logits_cls": 2 * cls, "loss_logits_box": 3 * box}, rel=1e-5)
    # The first row alone; its 0.81 is below the least that is divided by, 1.
    found = values(logits("anchors"), student, teacher, torch.tensor([True, False]))
    expected = {"loss_logits_cls": divergence(0.9, 0.5), "loss_logits_box": 0.81 * 2}
    assert found == pytest.approx(expected, rel=1e-5)


def test_gamma_weighs_by_the_error():
    student, teacher = (Prediction(torch.tensor([[logit(p)]]), torch.zeros(1, 4)) for p in (0.5, 0.8))
    found = values(logits("anchors", gamma=2.0), student, teacher)
    assert found["loss_logits_cls"] == pytest.approx(0.3**2 * divergence(0.8, 0.5), rel=1e-5)


def test_points_by_hand():
    """Boxes and centerness of a point count as its class is sure: 0.81 and 0.64."""
    scores = torch.tensor([[logit(0.9), 0.0], [0.0, logit(0.8)]])
    student = Prediction(scores, torch.zeros(2, 4), torch.tensor([logit(0.2), logit(0.9)]))
    teacher = Prediction(scores, torch.tensor([[1.0] * 4, [2.0] * 4]), torch.tensor([0.0, logit(0.9)]))
    found = values(logits("points", box_weight=2.0), student, teacher)
    expected = {
        "loss_logits_cls": 0.0,
        "loss_logits_box": 2 * (0.81 * 4 + 0.64 * 8) / 1.45,
        "loss_logits_ctr": 2 * 0.81 * divergence(0.5, 0.2) / 1.45,
    }
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_rows_that_do_not_count_may_hold_anything():
    student = Prediction(torch.zeros(2, 2), torch.zeros(2, 4), torch.zeros(2))
    teacher = Prediction(torch.ones(2, 2), torch.ones(2, 4), torch.ones(2))
    alone = values(logits("points"), *(Prediction(*(x[:1] for x in side)) for side in (student, teacher)))
    for side in (student, teacher):
        for tensor in side:
            tensor[1] = NAN
            tensor.requires_grad_(side is student)
    losses = logits("points")({"predictions": PredictionPair(student, teacher, torch.tensor([True, False]))})
    assert {name: loss.item() for name, loss in losses.items()} == alone
    sum(losses.values()).backward()
    assert all(tensor.grad[0].any() and not tensor.grad[1].any() for tensor in student)


SOFT = [0.5, 0.3, 0.2]  # two classes, and the background


def test_proposals_by_hand():
    """One region, uniform in the student; four outputs for each class, or for all."""
    student = Prediction(torch.zeros(1, 3), torch.zeros(1, 8))
    scores = torch.tensor([SOFT]).log()
    teacher = Prediction(scores, torch.tensor([[1.0] * 4 + [2.0] * 4]))
    cls = sum(p * math.log(p * 3) for p in SOFT)
    # Each class's box counts by its probability, the sum 0.8 of which is below 1.
    expected = {"loss_logits_cls": cls, "loss_logits_box": 0.5 * 4 + 0.3 * 8}
    assert values(logits("proposals"), student, teacher) == pytest.approx(expected, rel=1e-5)

    agnostic = [Prediction(side.scores, side.boxes[:, 4:]) for side in (student, teacher)]
    expected["loss_logits_box"] = (0.5 + 0.3) * 8
    assert values(logits("proposals"), *agnostic) == pytest.approx(expected, rel=1e-5)


def test_temperature_of_a_softmax():
    scores = torch.tensor([[2.0, 0.0, 0.0]])
    sides = [Prediction(x, torch.zeros(1, 8)) for x in (torch.zeros(1, 3), scores)]
    soft = [math.exp(x / 4) / (math.exp(0.5) + 2) for x in (2, 0, 0)]
    found = values(logits("proposals", temperature=4.0), *sides)
    assert found["loss_logits_cls"] == pytest.approx(16 * sum(p * math.log(p * 3) for p in soft), rel=1e-5)


def test_proposals_of_a_sigmoid_classifier():
    """Without a column for the background."""
    student = Prediction(torch.zeros(1, 2), torch.zeros(1, 8))
    teacher = Prediction(torch.tensor([[logit(0.8), 0.0]]), torch.ones(1, 8))
    found = values(logits("proposals", softmax=False), student, teacher)
    expected = {"loss_logits_cls": divergence(0.8, 0.5), "loss_logits_box": (0.8 + 0.5) * 4 / 1.3}
    assert found == pytest.approx(expected, rel=1e-5)


def test_no_proposals_are_no_loss():
    empty = Prediction(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 8, requires_grad=True))
    losses = logits("proposals")({"predictions": PredictionPair(empty, empty, None)})
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0, 0]


@pytest.mark.parametrize("kind", ["anchors", "points", "proposals"])
def test_agreement_costs_nothing_in_half_precision_too(kind):
    torch.manual_seed(0)
    proposals = kind == "proposals"
    scores, boxes = torch.randn(7, 3 if proposals else 2), torch.randn(7, 8 if proposals else 4)
    parts = [scores, boxes, torch.randn(7)] if kind == "points" else [scores, boxes]
    for dtype in (torch.float32, torch.bfloat16):
        teacher = Prediction(*(x.to(dtype) for x in parts))
        student = Prediction(*(x.clone().requires_grad_() for x in teacher if x is not None))
        method = logits(kind, gamma=2.0)
        losses = method({"predictions": PredictionPair(student, teacher, None)})
        assert all(loss.dtype == torch.float32 for loss in losses.values())
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
            dict.fromkeys(method.losses, 0.0), abs=1e-6
        )
        sum(losses.values()).backward()
        assert all(x.grad.abs().max() < 1e-6 for x in student if x is not None)


def test_without_the_box_loss_there_is_the_class_loss_alone():
    assert logits("points", box_weight=0.0, weight=2.0).losses == {
        "loss_logits_cls": LossInfo("predictions", 2.0)
    }
    sides = [Prediction(torch.zeros(1, 2), torch.zeros(1, 4), torch.zeros(1))] * 2
    assert values(logits("points", box_weight=0.0), *sides) == {"loss_logits_cls": 0.0}


# Pairs of networks.


def attach(student: HeadInfo, teacher: HeadInfo, **options) -> None:
    infos = [{"predictions": TapInfo(8, [8], True, head=info)} for info in (student, teacher)]
    settings = {"weight": 1.0, "box_weight": 1.0, "gamma": 2.0, "temperature": 1.0, **options}
    Logits(**settings, head=student).attach(*infos)


@pytest.mark.parametrize("kind", ["anchors", "points", "proposals"])
def test_networks_that_predict_the_same_are_taken(kind):
    attach(head(kind), head(kind, classifier_std=0.5))


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (head("anchors"), head("points"), r"anchors by sigmoid.*points by sigmoid.*METHODS"),
        (
            head("proposals"),
            head("proposals", softmax=False),
            r"proposals by softmax.*proposals by sigmoid.*METHODS",
        ),
        (head("anchors"), head("anchors", num_classes=80), r"2 classes \(NUM_CLASSES.*80.*METHODS"),
        (
            head("anchors"),
            head("anchors", boxes={"anchors": [[[0, 0, 16, 16]]]}),
            r"student's anchors are .*8, 8.*teacher's .*16, 16.*MODEL\.ANCHOR_GENERATOR",
        ),
        (
            head("points"),
            head("points", boxes={"anchor_offset": 0.0}),
            r"anchors' offset is 0\.5, the teacher's 0\.0",
        ),
        (
            head("anchors"),
            head("anchors", boxes={"coding": {"weights": [10.0]}}),
            r"box coding is .*1\.0.*10\.0.*BBOX_REG_WEIGHTS.*BOX_WEIGHT 0",
        ),
        (
            head("proposals"),
            head("proposals", boxes={"columns": 4}),
            r"box outputs are 8, the teacher's 4.*CLS_AGNOSTIC_BBOX_REG.*BOX_WEIGHT 0",
        ),
    ],
)
def test_networks_that_differ_are_refused_by_what_differs(student, teacher, message):
    with pytest.raises(ConfigError, match=message.replace("", "")):
        attach(student, teacher)


def test_without_the_box_loss_boxes_may_differ_but_not_the_anchors():
    attach(head("proposals"), head("proposals", boxes={"columns": 4}), box_weight=0.0)
    attach(head("anchors"), head("anchors", boxes={"coding": {}}), box_weight=0.0)
    with pytest.raises(ConfigError, match="anchors are") as error:
        attach(head("anchors"), head("anchors", boxes={"anchors": []}), box_weight=0.0)
    assert "BOX_WEIGHT" not in str(error.value)


def test_a_long_list_of_anchors_is_cut_in_the_message():
    anchors = [[[float(x)] * 4 for x in range(9)]] * 5
    with pytest.raises(ConfigError) as error:
        attach(head("anchors"), head("anchors", boxes={"anchors": anchors}))
    assert len(str(error.value)) < 500


def from_config(**keys) -> Logits:
    cfg = get_cfg()
    add_mgd_config(cfg)
    for key, value in keys.items():
        cfg.DISTILL.LOGITS[key] = value

    def inspect(taps):
        return {tap: TapInfo(8, [8], True, head=head("points")) for tap in taps}

    return Logits.from_config(cfg.DISTILL.LOGITS, inspect, inspect)


def test_settings_become_those_of_the_method():
    method = from_config(WEIGHT=2.0, BOX_WEIGHT=3.0, GAMMA=1.0, TEMPERATURE=4.0)
    assert method.losses == {
        "loss_logits_cls": LossInfo("predictions", 2.0),
        "loss_logits_box": LossInfo("predictions", 3.0),
        "loss_logits_ctr": LossInfo("predictions", 3.0),
    }
    assert (method.gamma, method.temperature) == (1.0, 4.0)
    assert list(method.taps) == ["predictions"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("WEIGHT", -1.0),
        ("BOX_WEIGHT", NAN),
        ("GAMMA", -0.5),
        ("TEMPERATURE", 0.0),
        ("TEMPERATURE", NAN),
        ("TEMPERATURE", math.inf),
    ],
)
def test_settings_that_cannot_work_are_named(key, value):
    with pytest.raises(ConfigError, match=rf"DISTILL\.LOGITS\.{key} = {value}"):
        from_config(**{key: value})
