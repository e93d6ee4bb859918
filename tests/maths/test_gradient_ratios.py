"""Gradient norms of the losses at their taps: by hand on a small graph, and inside a real step."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mgd_det.maths.gradient_ratios import GradientPoint, GradientRatios
from mgd_det.modeling.step_plan import StepPlan
from mgd_det.modeling.taps import capture


def ratios(scale: float = 1.0) -> dict[str, float]:
    """x -> a = 3x -> b = 2a, changed in place to b + 1; losses at a and at b, and the task's 5 b."""
    x = torch.tensor([[1.0, 2.0]], requires_grad=True)
    a = 3 * x
    at_a = GradientPoint(a)
    loss_a = (a * torch.tensor([[3.0, 4.0]])).sum()  # gradient (3, 4): norm 5
    b = 2 * a
    at_b = GradientPoint(b)
    loss_b = (b * torch.tensor([[1.0, 0.0]])).sum()  # gradient (1, 0) at b, (2, 0) at a
    b += 1
    task = (b * torch.tensor([[6.0, 8.0]])).sum()  # gradient (6, 8): norm 10 at b, 20 at a
    half_a = loss_a * 0.5  # enters the sum with a factor, which is not part of the ratio
    measured = GradientRatios({"a": (loss_a, at_a), "b": (loss_b, at_b)}, [half_a, loss_b])
    ((task + half_a + loss_b) * scale).backward()
    assert torch.allclose(x.grad, scale * torch.tensor([[3 * (1.5 + 2 + 12), 3 * (2.0 + 16)]]))
    return measured.ratios()


@pytest.mark.parametrize("scale", [1.0, 1024.0, 0.25])
def test_ratios_by_hand_whatever_scale_the_backward_pass_has(scale):
    """At a the loss at b is not the task's: (3, 4) against (12, 16)."""
    assert ratios(scale) == pytest.approx({"a": 5 / 20, "b": 1 / 10})


def test_losses_that_act_elsewhere_are_not_the_tasks():
    a = 2 * torch.ones(1, 2, requires_grad=True)
    point = GradientPoint(a)
    own = (a * torch.tensor([[3.0, 4.0]])).sum()  # norm 5
    task, other = (a * torch.tensor([[6.0, 8.0]])).sum(), 7 * a.sum()  # of the task alone: norm 10
    measured = GradientRatios({"own": (own, point)}, [own, other])
    (own + task + other).backward()
    assert measured.ratios() == pytest.approx({"own": 0.5})


def test_without_a_backward_pass_there_is_no_ratio():
    a = 2 * torch.ones(1, 3, requires_grad=True)
    loss = a.square().sum()
    assert GradientRatios({"a": (loss, GradientPoint(a))}, [loss]).ratios() == {}


def test_several_tensors_are_one_point_and_a_loss_may_miss_some():
    x = torch.ones(2, requires_grad=True)
    a, b = 2 * x, 3 * x
    point = GradientPoint(a, b)
    own = 6 * a[0]  # gradients (6, 0) and none
    task = 3 * a[1] + 4 * b[0]  # (0, 3) and (4, 0): norm 5
    nothing = own * 0
    measured = GradientRatios({"own": (own, point)}, [nothing])
    (nothing + task).backward()
    assert measured.ratios() == pytest.approx({"own": 6 / 5})


@pytest.mark.parametrize(
    ("dtype", "pull", "found"),
    [
        (torch.bfloat16, 8.0, {"own": 8.0}),
        (torch.bfloat16, 100.0, {}),  # the task's is 1 of 101, and bfloat16 has an epsilon of 1 in 128
        (torch.float32, 100.0, {"own": 100.0}),
    ],
)
def test_a_task_that_is_lost_in_rounding_gives_no_ratio(dtype, pull, found):
    a = 2 * torch.ones(1, 1, requires_grad=True, dtype=dtype)
    point = GradientPoint(a)
    own, task = pull * a.sum(), a.sum()
    measured = GradientRatios({"own": (own, point)}, [own])
    (own + task).backward()
    assert measured.ratios() == pytest.approx(found)


@pytest.mark.parametrize("factor", [float("inf"), 0.0])
def test_overflow_or_a_task_without_gradient_gives_no_ratio(factor):
    a = 2 * torch.ones(1, 3, requires_grad=True)
    point = GradientPoint(a)
    loss = a.square().sum()
    measured = GradientRatios({"a": (loss, point)}, [loss])
    (loss + factor * a.sum()).backward()
    assert measured.ratios() == {}


TAPS = ["res3", "res4_relu", "p3", "bottom_up.res4.0=bottom_up.res4.5"]


@pytest.fixture
def detector(mgd_cfg, images):
    mgd_cfg.DISTILL.MGD.TAPS = TAPS
    torch.manual_seed(0)
    detector = build_model(mgd_cfg)
    detector.rematch([images])
    return detector


def step(detector, batch):
    detector.zero_grad()
    vars(detector.student).pop("loss_normalizer", None)  # the task losses' moving average
    with EventStorage():
        losses = detector(batch)
    sum(losses.values()).backward()
    return {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}


def test_in_a_real_step_they_are_those_of_separate_backward_passes(detector, labelled):
    """Every kind of tap, taps that lie behind one another, blocks with and without a projection."""
    detector.plan_step(StepPlan(measure_gradients=True))
    step(detector, labelled)
    found = detector.take_gradient_ratios()
    assert list(found) == list(detector.losses)

    vars(detector.student).pop("loss_normalizer")
    points = {}
    names = [tap.split("=")[0] for tap in TAPS]
    with EventStorage(), capture(detector.student.backbone, names, points=points):
        losses = detector(labelled)
    task = sum(loss for name, loss in losses.items() if name not in detector.losses)
    for name, (tap, _) in detector.losses.items():
        (edge,) = points[tap.split("=")[0]].edges
        own, of_task = (
            torch.autograd.grad(loss, [edge], retain_graph=True)[0].norm() for loss in (losses[name], task)
        )
        assert found[name] == pytest.approx((own / of_task).item(), rel=1e-3)


def test_measuring_leaves_every_gradient_as_it_was(detector, labelled):
    plain = step(detector, labelled)
    detector.plan_step(StepPlan(measure_gradients=True))
    measured = step(detector, labelled)
    assert detector.take_gradient_ratios()
    assert not detector.plan.measure_gradients
    assert plain.keys() == measured.keys()
    assert all(torch.equal(plain[name], measured[name]) for name in plain)


def test_a_point_is_before_what_the_network_does_in_place(detector):
    """The sum before the ReLU passes on its gradient where the sum is positive alone."""
    backbone, points = detector.student.backbone, {}
    with capture(backbone, ["res3"], points=points) as features:
        backbone.bottom_up(torch.randn(1, 3, 64, 64))["res3"].sum().backward()
    assert torch.equal(points["res3"].arrived[0], (features["res3"] > 0).float())
