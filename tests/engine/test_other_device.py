"""Training steps on another device than the CPU, as far as that can be seen without a GPU."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.detectors import distil, save_teacher, small
from helpers.other_device import Elsewhere, other_device

import mgd_det
from mgd_det.config import student_config
from mgd_det.modeling.step_plan import StepPlan

__all__ = ["other_device"]

FEATURES = ["mgd", "imitation", "channel_mlp", "pkd", "cwd", "masked_generation"]
METHODS = {
    "retinanet": [*FEATURES, "lsh", "logits", "crosskd"],
    "faster": [*FEATURES, "lsh", "logits"],
}


def test_tensors_of_different_devices_do_not_go_together(other_device):
    there = torch.ones(2, device=other_device)
    assert (there * 2 + torch.tensor(1.0)).cpu().tolist() == [3.0, 3.0]
    with pytest.raises(RuntimeError, match="on different devices"):
        there + torch.ones(2)
    with pytest.raises(TypeError, match="no array"):
        there.numpy()


@pytest.mark.parametrize("kind", METHODS)
def test_a_step_with_every_method_stays_on_the_students_device(kind, demo_data, tmp_path, labelled, request):
    teacher = save_teacher(tmp_path / "teacher", small(demo_data, tmp_path / "t", kind))
    cfg = distil(small(demo_data, tmp_path / "s", kind), METHODS[kind], teacher)
    cfg.MODEL.DEVICE = request.getfixturevalue("other_device")
    model = mgd_det.wrap(build_model(student_config(cfg)), cfg).train()
    model.plan_step(StepPlan(measure_gradients=True, collect_statistics=True))
    with EventStorage():
        model.rematch([labelled])
        losses = model(labelled)
    assert {"loss_mgd_res3", "loss_pkd_p3", "loss_logits_box"} < losses.keys()
    sum(losses.values()).backward()
    assert all(isinstance(parameter.data, Elsewhere) for parameter in model.parameters())
    assert all(ratio > 0 for ratio in model.take_gradient_ratios().values())
    assert set(model.distill_state()) >= set(METHODS[kind])
