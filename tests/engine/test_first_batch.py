"""What the first batch tells: different images, a teacher that is constant, what distilling costs."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mgd_det import RematchHook, register_datasets
from mgd_det.engine.first_batch import (
    FirstBatchHook,
    added_cost,
    constant_channels,
    pixel_difference,
    watch_next_batch,
)
from mgd_det.errors import ConfigError
from mgd_det.modeling.detector import NotMatchedError


@pytest.fixture
def detector(mgd_cfg, images):
    torch.manual_seed(0)
    detector = build_model(mgd_cfg)
    detector.rematch([images])
    return detector


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: dict[str, list[str]] = {"INFO": [], "WARNING": []}

    def emit(self, record: logging.LogRecord) -> None:
        self.messages[record.levelname].append(record.getMessage())


@pytest.fixture
def logged(detector, labelled):
    """Run one training step; what has been logged so far, by level."""
    handler, logger = Records(), logging.getLogger("detectron2.mgd_det.engine.first_batch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)

    watch_next_batch(detector)

    def run() -> dict[str, list[str]]:
        with EventStorage():
            detector(labelled)
        return handler.messages

    yield run
    logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


def test_constant_channels_by_hand():
    features = torch.zeros(2, 4, 1, 2)
    features[:, 1] = 5.0
    features[:, 2] = torch.tensor([[1.0, 2.0]])
    features[0, 3] = 7.0  # constant in each image, not over both
    assert constant_channels(features) == 2


def test_a_good_teacher_raises_no_warning_and_the_cost_is_logged_once(logged):
    logged()
    messages = logged()
    assert messages["WARNING"] == []
    (message,) = messages["INFO"]
    assert message.startswith("distillation adds about ")
    assert "MB of memory" in message


def test_a_teacher_without_life_is_named_with_the_tap(detector, logged):
    for block in detector.teacher.model.backbone.bottom_up.res4:
        for name, parameter in block.named_parameters():
            if name.startswith(("conv3", "shortcut")):
                parameter[:400] = 0
    (message,) = logged()["WARNING"]
    assert message.startswith("400 of the teacher's 512 channels at res4 are constant")


def test_a_teacher_that_is_constant_throughout_ends_the_run(detector, logged):
    for parameter in detector.teacher.model.backbone.bottom_up.res4.parameters():
        parameter.zero_()
    with pytest.raises(ConfigError, match="all of this teacher's 512 channels at res4 are constant"):
        logged()


def test_a_level_of_one_position_is_not_called_constant(mgd_cfg, labelled):
    """A process with a single image of up to 128 px has one position at p7."""
    assert constant_channels(torch.ones(1, 4, 1, 1)) == 0
    mgd_cfg.DISTILL.METHODS, mgd_cfg.DISTILL.IMITATION.TAPS = ["imitation"], ["p7"]
    mgd_cfg.MODEL.RETINANET.NORM = ""  # torch's batch norm takes no single position
    detector = build_model(mgd_cfg)
    watch_next_batch(detector)
    with EventStorage():
        assert detector(labelled[:1])["loss_imitation_p7"] > 0


@pytest.mark.parametrize(
    ("student", "teacher"), [("BGR", "RGB"), ("RGB", "BGR"), ("RGB", "RGB"), ("BGR", "BGR")]
)
def test_channel_order_and_normalisation_are_undone(student, teacher, mgd_cfg, images):
    mgd_cfg.INPUT.FORMAT = student
    mgd_cfg.DISTILL.TEACHER.OPTS = [
        *("INPUT.FORMAT", teacher, "MODEL.PIXEL_MEAN", [10.0, 20.0, 30.0], "MODEL.PIXEL_STD", [2.0, 3.0, 4.0])
    ]
    detector = build_model(mgd_cfg)
    detector.prepare()
    assert pixel_difference(detector, detector.teacher, [x["image"] for x in images]) < 1e-3


def test_a_student_that_sees_other_pixels_is_told(detector, logged, monkeypatch):
    preprocess = detector.student.preprocess_image

    def scaled(batched_inputs):
        return preprocess([{**x, "image": x["image"] / 255} for x in batched_inputs])

    monkeypatch.setattr(detector.student, "preprocess_image", scaled)
    (message,) = logged()["WARNING"]
    assert message.startswith("student and teacher see different images")


def test_added_cost_counts_weights_and_what_is_kept(detector, labelled):
    """One loss of one tap, whose tensors can be counted: float32 everywhere."""
    from torch import nn

    from mgd_det.methods import TapFeatures

    class Product(nn.Module):
        def forward(self, features):
            student, teacher, *_ = features["a"]
            return {"loss_a": (student * teacher).sum()}

    def pair():
        student = torch.ones(1, 2, 3, 4, requires_grad=True)
        return {"a": TapFeatures(student, torch.ones(1, 2, 3, 4), None)}

    cost = added_cost(pair, nn.ModuleDict({"product": Product()}), nn.Linear(5, 1))
    assert cost.teacher_bytes == 4 * (5 + 1)
    # The product keeps both factors where both need a gradient; here one alone does.
    assert cost.kept_bytes == 4 * 24
    assert cost.seconds > 0


def test_looking_moves_no_state(detector, labelled):
    state = detector.distill_state()["mgd"]["_extra_state"]["step"]
    torch.manual_seed(3)
    streams = torch.get_rng_state()
    watch_next_batch(detector)
    with EventStorage():
        detector(labelled)
    assert detector.distill_state()["mgd"]["_extra_state"]["step"] == state + 1
    assert torch.equal(torch.get_rng_state(), streams)
    assert all(p.grad is None for p in detector.parameters())


def test_a_first_batch_without_gradients_is_no_error(mgd_cfg, labelled):
    """Losses that have no parameters of their own then have no graph."""
    mgd_cfg.DISTILL.METHODS = ["logits"]
    detector = build_model(mgd_cfg)
    watch_next_batch(detector)
    with torch.no_grad(), EventStorage():
        assert "loss_logits_cls" in detector(labelled)


def test_the_hook_looks_once_in_a_training_and_so_does_the_one_that_matches(mgd_cfg):
    """In a stock trainer, beside PreciseBN, whose forward passes are no first batch."""
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST, mgd_cfg.SOLVER.MAX_ITER = (), 2
    mgd_cfg.TEST.PRECISE_BN.ENABLED, mgd_cfg.TEST.PRECISE_BN.NUM_ITER = True, 2
    mgd_cfg.TEST.EVAL_PERIOD = 1
    mgd_cfg.DISTILL.MGD.NORM = "BN"
    logger = logging.getLogger("detectron2.mgd_det.engine.first_batch")
    for methods, hook in ((["mgd"], RematchHook(mgd_cfg)), (["logits"], FirstBatchHook())):
        mgd_cfg.DISTILL.METHODS = methods
        records = Records()
        logger.addHandler(records)
        try:
            trainer = DefaultTrainer(mgd_cfg)
            trainer.register_hooks([hook])
            trainer.train()
        finally:
            logger.removeHandler(records)
        assert [message.split(" about ")[0] for message in records.messages["INFO"]] == ["distillation adds"]


def test_a_step_that_fails_leaves_no_hook_behind(mgd_cfg, labelled):
    detector = build_model(mgd_cfg)
    watch_next_batch(detector)
    for _ in range(2):
        with EventStorage(), pytest.raises(NotMatchedError):
            detector(labelled)
    modules = detector.modules()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
