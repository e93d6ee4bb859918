"""A teacher beside a detector that somebody else has built."""

from __future__ import annotations

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import GeneralizedRCNNWithTTA, build_model
from detectron2.solver.build import get_default_optimizer_params
from detectron2.utils.events import EventStorage
from helpers.pipelines import pipeline_config
from torch.optim.swa_utils import AveragedModel

import mgd_det
from mgd_det.config import student_config
from mgd_det.engine.first_batch import watch_next_batch
from mgd_det.errors import ConfigError


@pytest.fixture
def cfg(demo_data, tmp_path):
    return pipeline_config(demo_data, tmp_path / "run", "TupleFromPreprocessing")


def test_parameters_modules_and_buffers_keep_their_stock_names(cfg):
    student = build_model(cfg)
    expected = [dict(student.named_parameters()), dict(student.named_buffers())]
    modules = [name for name, _ in student.named_modules()]
    wrapped = mgd_det.wrap(student, cfg)
    found = [dict(wrapped.named_parameters()), dict(wrapped.named_buffers())]
    for ours, stock in zip(found, expected):
        assert list(ours)[: len(stock)] == list(stock)
        assert all(ours[name] is stock[name] for name in stock)
        assert all(name.startswith("methods.") for name in list(ours)[len(stock) :])
    assert len(found[0]) > len(expected[0])  # the methods' norms
    assert [name for name, _ in wrapped.named_modules()][1 : 1 + len(modules)] == modules
    assert wrapped.get_parameter("classifier.bias") is student.classifier.bias


def test_the_methods_are_on_the_students_device(student_cfg):
    """On the meta device, which stands for a GPU."""
    student_cfg.MODEL.DEVICE, student_cfg.MODEL.RESNETS.NORM = "meta", "BN"
    student_cfg.DISTILL.ENABLED, student_cfg.DISTILL.MGD.TAPS = True, ["p3"]
    wrapped = mgd_det.wrap(build_model(student_config(student_cfg)), student_cfg)
    assert {parameter.device.type for parameter in wrapped.parameters()} == {"meta"}
    assert [name for name, _ in wrapped.named_parameters() if name.startswith("methods.")]


def test_a_learning_rate_by_name_is_what_it_is_without_a_teacher(cfg):
    overrides = {"bias": {"lr": 0.5}, "weight": {"lr": 0.25}}
    student = build_model(cfg)

    def rates(model):
        groups = get_default_optimizer_params(model, base_lr=1.0, overrides=overrides)
        names = {id(p): name for name, p in student.named_parameters()}
        return {names[id(p)]: group["lr"] for group in groups for p in group["params"] if id(p) in names}

    alone = rates(student)
    assert set(alone.values()) == {0.25, 0.5}
    assert rates(mgd_det.wrap(student, cfg)) == alone


def test_a_stock_moving_average_is_the_stock_students(cfg, labelled, tmp_path):
    wrapped = mgd_det.wrap(build_model(cfg), cfg)
    average = AveragedModel(wrapped, multi_avg_fn=None)
    with torch.no_grad():
        wrapped.student.classifier.bias.add_(1)
    average.update_parameters(wrapped)
    state = average.state_dict()
    names = [name.removeprefix("module.") for name in state if name != "n_averaged"]
    assert names == list(build_model(cfg).state_dict())
    another = AveragedModel(mgd_det.wrap(build_model(cfg), cfg))
    another.load_state_dict(state)
    assert torch.equal(another.module.student.classifier.bias, wrapped.student.classifier.bias)
    torch.save({"model": average.module.state_dict()}, tmp_path / "average.pth")
    stock = build_model(cfg)
    DetectionCheckpointer(stock).load(str(tmp_path / "average.pth"))
    assert torch.equal(stock.classifier.bias, wrapped.student.classifier.bias)


def test_other_outputs_and_arguments_pass_through(cfg, labelled):
    class Scaled(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, batched_inputs, scale=1.0, *, extra=None):
            losses = self.inner(batched_inputs)
            if not self.training:
                return losses
            return {name: scale * loss for name, loss in losses.items()}, extra

    torch.manual_seed(0)
    wrapped = mgd_det.wrap(Scaled(build_model(cfg)), cfg)
    wrapped.rematch([labelled])
    with EventStorage():
        losses, extra = wrapped(labelled, 2.0, extra="kept")
        again, _ = wrapped(labelled, 4.0)
    assert extra == "kept"
    assert list(losses) == ["loss_class", "loss_mgd_res4", "loss_imitation_res4"]
    assert again["loss_class"].item() == pytest.approx(2 * losses["loss_class"].item())
    assert wrapped.eval()(labelled[:1], 3.0)[0]["sem_seg"].shape == (6, 1, 1)


def test_a_detector_whose_loss_is_no_dict_is_refused(cfg, labelled):
    class Sum(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, batched_inputs):
            output = self.inner(batched_inputs)
            return sum(output.values()) if self.training else output

    wrapped = mgd_det.wrap(Sum(build_model(cfg)), cfg)
    wrapped.rematch([labelled])
    with (
        EventStorage(),
        pytest.raises(ConfigError, match="returns a Tensor, to which no losses can be added"),
    ):
        wrapped(labelled)


def test_a_wrapped_one_is_not_wrapped_again_and_the_student_comes_out(cfg):
    student = build_model(cfg)
    wrapped = mgd_det.wrap(student, cfg)
    assert mgd_det.wrap(wrapped, cfg) is wrapped
    assert mgd_det.student_of(wrapped) is mgd_det.student_of(student) is student


def test_code_that_looks_at_the_class_gets_the_student(demo_data, tmp_path):
    cfg = pipeline_config(demo_data, tmp_path / "run", "cascade")
    wrapped = mgd_det.wrap(build_model(cfg), cfg).eval()
    with pytest.raises(AssertionError):
        GeneralizedRCNNWithTTA(cfg, wrapped)
    assert GeneralizedRCNNWithTTA(cfg, mgd_det.student_of(wrapped)).model is wrapped.student


@pytest.mark.parametrize(("reentrant", "refused"), [(True, True), (False, False)])
def test_checkpointing_that_cuts_a_tap_off_ends_the_run_on_the_first_batch(reentrant, refused, cfg, labelled):
    wrapped = mgd_det.wrap(build_model(cfg), cfg)
    wrapped.rematch([labelled])
    stage = wrapped.student.backbone.bottom_up.res4
    inner = stage.forward
    stage.forward = lambda x: torch.utils.checkpoint.checkpoint(inner, x, use_reentrant=reentrant)
    watch_next_batch(wrapped)
    with EventStorage():
        if refused:
            with pytest.raises(ConfigError, match=r"DISTILL.MGD.TAPS = \['res4'\].*use_reentrant=False"):
                wrapped(labelled)
        else:
            sum(wrapped(labelled).values()).backward()
            assert wrapped.get_parameter("backbone.bottom_up.res4.0.conv1.weight").grad.any()
