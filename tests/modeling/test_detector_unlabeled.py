"""Training on images with and without labels: which losses they enter, and with what weight."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from helpers.detectors import distil, save_teacher, small

from mgd_det.errors import ConfigError
from mgd_det.modeling.step_plan import StepPlan


def unlabeled(shape=(3, 192, 160)) -> dict:
    generator = torch.Generator().manual_seed(9)
    image = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return {"image": image, "height": shape[1], "width": shape[2], "unlabeled": True}


def built(cfg):
    """With norms that a forward pass does not change, so that passes can be compared."""
    torch.manual_seed(3)
    detector = build_model(cfg)
    for module in detector.student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    return detector


def losses_of(detector, batch):
    # A copy, since RetinaNet's and FCOS's losses move their normalisers.
    with EventStorage(), torch.jit.optimized_execution(False):
        return copy.deepcopy(detector)(batch)


CASES = {
    "retinanet": (["mgd", "imitation", "logits"], []),
    "fcos": (["logits", "lsh"], ["DISTILL.LSH.NUM_HASHES", 16]),
}


@pytest.mark.parametrize("kind", CASES)
def test_losses_are_means_over_all_images_and_the_tasks_over_those_with_labels(
    kind, demo_data, labelled, tmp_path
):
    methods, options = CASES[kind]
    teacher = save_teacher(tmp_path / "teacher", small(demo_data, tmp_path / "t", kind))
    cfg = small(demo_data, tmp_path / "s", kind, "DATASETS.UNLABELED", ("more",))
    detector = built(distil(cfg, methods, teacher, *options))
    if "mgd" in methods:
        detector.rematch([labelled])
    other = unlabeled()
    # The same image with a label, by the ordinary way.
    as_labeled = {**other, "instances": copy.deepcopy(labelled[0]["instances"]), "unlabeled": False}
    ours, theirs = losses_of(detector, labelled), losses_of(detector, [as_labeled])
    both = losses_of(detector, [labelled[0], other, labelled[1]])
    assert list(both) == list(ours)
    distilled = detector.losses.keys()
    assert len(distilled) > 2
    for name in ours.keys() - distilled:
        assert torch.equal(both[name], ours[name]), name
    for name in distilled:
        expected = (2 * ours[name] + theirs[name]) / 3
        torch.testing.assert_close(both[name], expected, rtol=1e-5, atol=1e-7)
        assert not torch.isclose(ours[name], theirs[name], rtol=1e-4), name


@pytest.fixture
def detector(mgd_cfg, labelled):
    detector = built(mgd_cfg)
    detector.rematch([labelled])
    return detector


def test_gradients_of_both_kinds_of_images_reach_the_student(detector, labelled):
    def gradient(batch):
        trained = copy.deepcopy(detector)
        with EventStorage():
            sum(loss for name, loss in trained(batch).items() if "mgd" in name).backward()
        return trained.student.backbone.bottom_up.res3[0].conv1.weight.grad

    as_labeled = {**unlabeled(), "instances": labelled[0]["instances"], "unlabeled": False}
    expected = (2 * gradient(labelled) + gradient([as_labeled])) / 3
    torch.testing.assert_close(gradient([*labelled, unlabeled()]), expected, rtol=1e-4, atol=1e-7)


def test_in_mixed_precision(detector, labelled):
    batch = [*labelled, unlabeled()]
    expected = losses_of(detector, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = losses_of(detector, batch)
    for name in detector.losses:
        torch.testing.assert_close(found[name].float(), expected[name], rtol=0.05, atol=0)


def test_statistics_of_batch_norms_follow_both(mgd_cfg, labelled):
    torch.manual_seed(3)
    detector = build_model(mgd_cfg)
    detector.rematch([labelled])
    with EventStorage():
        detector([*labelled, unlabeled()])
    norm = detector.student.backbone.bottom_up.stem.conv1.norm
    assert norm.num_batches_tracked == 2


def test_once_the_losses_have_stopped_and_without_methods_they_are_left_out(detector, labelled, mgd_cfg):
    detector.plan_step(StepPlan(loss_factor=0.0))
    stopped = losses_of(detector, [*labelled, unlabeled()])
    expected = losses_of(detector.student, labelled)
    assert all(torch.equal(stopped[name], value) for name, value in expected.items())
    mgd_cfg.DISTILL.METHODS = []
    alone = built(mgd_cfg)
    assert losses_of(alone, [*labelled, unlabeled()]) == losses_of(alone, labelled)


def test_gradient_ratios_are_those_of_images_with_labels(detector, labelled):
    def ratios(batch):
        trained = copy.deepcopy(detector)
        trained.plan_step(StepPlan(measure_gradients=True))
        with EventStorage():
            sum(trained(batch).values()).backward()
        return trained.take_gradient_ratios()

    alone, both = ratios(labelled), ratios([*labelled, unlabeled()])
    assert alone.keys() == both.keys() == detector.losses.keys()
    assert all(both[name] == pytest.approx(alone[name], rel=1e-3) for name in alone)


NEED_LABELS = {
    "lsh": ("retinanet", ["lsh"], []),
    "imitation": ("retinanet", ["imitation"], ["DISTILL.IMITATION.FOREGROUND_WEIGHT", 2.0]),
    "logits": ("faster", ["logits"], []),
}


@pytest.mark.parametrize("method", NEED_LABELS)
def test_methods_that_need_labels(method, demo_data, labelled, tmp_path, caplog):
    kind, methods, options = NEED_LABELS[method]
    teacher = save_teacher(tmp_path / "teacher", small(demo_data, tmp_path / "t", kind))
    cfg = small(demo_data, tmp_path / "s", kind, "DATASETS.UNLABELED", ("more",), *options)
    with pytest.raises(ConfigError, match=rf"DATASETS\.UNLABELED.*need labels: {method}\. .*leave the sets"):
        build_model(distil(cfg, methods, teacher))
    caplog.set_level("INFO")
    mgd = ["DISTILL.MGD.TAPS", ["res4"]]
    detector = built(distil(cfg, [*methods, "mgd"], teacher, *mgd))
    assert f"leave its images out: {method}" in caplog.text
    detector.rematch([labelled])
    torch.manual_seed(5)
    ours = losses_of(detector, labelled)
    torch.manual_seed(5)
    both = losses_of(detector, [*labelled, unlabeled()])
    changed = [name for name in ours if not torch.equal(ours[name], both[name])]
    assert changed == ["loss_mgd_res4"]
