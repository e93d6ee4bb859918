"""The method on hand-made features: reductions, weights, ratios of channels, the reference's sums."""

from __future__ import annotations

import pytest
import torch

from mgd_det.errors import ConfigError
from mgd_det.maths.matching import assignment_cost, channel_cost, control_cost
from mgd_det.maths.reducers import absolute_max
from mgd_det.methods import AssignmentControl, TapFeatures, TapInfo
from mgd_det.methods.mgd import MGD


def features(student: int, teacher: int, mask=None, n: int = 2, seed: int = 0) -> TapFeatures:
    generator = torch.Generator().manual_seed(seed)
    shape = (4, 6)
    return TapFeatures(
        torch.randn(n, student, *shape, generator=generator),
        torch.randn(n, teacher, *shape, generator=generator),
        mask,
    )


def built(channels: int, tap: str = "res3", control: tuple = ("solved", 0), **options) -> MGD:
    mgd = MGD(channels={tap: channels}, **{"norm": "", "weights": [1.0], **options})
    mgd.control = AssignmentControl(*control)
    return mgd


def solved(found: TapFeatures, tap: str = "res3", **options) -> MGD:
    mgd = built(found.student.shape[1], tap, **options)
    mgd.attach({}, {tap: TapInfo(found.teacher.shape[1], 8, True)})
    mgd.observe({tap: found})
    mgd.absorb(lambda tensor: None, decay=0)
    mgd.solve()
    return mgd


@pytest.mark.parametrize(
    ("student", "teacher", "spread", "groups"),
    [(4, 16, False, 4), (4, 4, False, 1), (4, 10, False, 2), (4, 10, True, 3), (6, 4, False, 1)],
)
@pytest.mark.parametrize("reducer", ["amp", "sm", "rd", "sp"])
def test_every_ratio_of_channels_trains(student, teacher, spread, groups, reducer):
    found = features(student, teacher)
    found.student.requires_grad_()
    mgd = solved(found, reducer=reducer, spread=spread)
    assert mgd._matchings["res3"].groups.shape == (student, 1 if reducer == "sm" else groups)
    loss = mgd({"res3": found})["loss_mgd_res3"]
    loss.backward()
    assert loss > 0
    assert found.student.grad.abs().sum() > 0


def test_the_reference_reduction_by_hand():
    """sum / (5e6 at res4) / (2 images * 3 processes), padding and all, times the weight."""
    mask = torch.ones(2, 1, 4, 6, dtype=torch.bool)
    mask[1, :, :, 3:] = False
    found = features(4, 8, mask)
    mgd = solved(found, "res4", reduction="reference", weights=[0.5], num_ranks=3)
    groups, margin, _ = mgd._matchings["res4"]
    target = torch.maximum(absolute_max(found.teacher, groups), margin[:, None, None])
    active = (found.student > target) | (target > 0)
    total = ((found.student - target).square() * active).sum()
    expected = 0.5 * total / 5e6 / 6
    assert mgd({"res4": found})["loss_mgd_res4"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_reference_has_no_constants_for_other_taps():
    with pytest.raises(ConfigError, match=r"REDUCTION = 'reference'.*\"mean\""):
        MGD(channels={"p3": 4}, reduction="reference")


def test_a_weight_means_the_same_whatever_the_batch_size_padding_and_number_of_processes():
    one = features(4, 8, n=1)
    mgd = solved(one, norm="GN")
    loss = mgd({"res3": one})["loss_mgd_res3"].item()
    # Twice the batch.
    doubled = TapFeatures(one.student.repeat(2, 1, 1, 1), one.teacher.repeat(2, 1, 1, 1), None)
    assert mgd({"res3": doubled})["loss_mgd_res3"].item() == pytest.approx(loss, rel=1e-5)
    # Padded to twice the size with whatever.
    mask = torch.zeros(1, 1, 8, 12, dtype=torch.bool)
    mask[..., :4, :6] = True
    padded = [torch.full((1, c, 8, 12), 7.0) for c in (4, 8)]
    padded[0][..., :4, :6], padded[1][..., :4, :6] = one.student, one.teacher
    assert mgd({"res3": TapFeatures(*padded, mask)})["loss_mgd_res3"].item() == pytest.approx(loss, rel=1e-5)
    # A larger image of the same content.
    tiled = TapFeatures(one.student.repeat(1, 1, 2, 3), one.teacher.repeat(1, 1, 2, 3), None)
    assert mgd({"res3": tiled})["loss_mgd_res3"].item() == pytest.approx(loss, rel=1e-5)
    # Two processes with an image each: the mean of their losses, as DDP takes it of gradients.
    other = features(4, 8, n=1, seed=1)
    both = TapFeatures(*(torch.cat(pair) for pair in zip(one[:2], other[:2])), None)
    apart = [mgd({"res3": x})["loss_mgd_res3"].item() for x in (one, other)]
    assert mgd({"res3": both})["loss_mgd_res3"].item() == pytest.approx(sum(apart) / 2, rel=1e-5)


def test_random_drop_has_a_stream_of_its_own_that_a_resume_continues():
    found = features(4, 16)
    state = torch.get_rng_state()
    mgd = solved(found, reducer="rd")
    first = mgd({"res3": found})["loss_mgd_res3"].item()
    saved = mgd.state_dict()
    second = mgd({"res3": found})["loss_mgd_res3"].item()
    assert torch.equal(torch.get_rng_state(), state)
    assert first != second
    resumed = MGD(channels={"res3": 4}, norm="", weights=[1.0], reducer="rd")
    resumed.load_state_dict(saved)
    assert resumed({"res3": found})["loss_mgd_res3"].item() == second


def test_images_that_are_not_finite_are_left_out_and_counted():
    found = features(4, 8, n=3)
    sound = TapFeatures(found.student[:2], found.teacher[:2], None)
    expected = solved(sound)._matchings["res3"]
    found.student[2, 1, 0, 0] = float("inf")
    mgd = solved(found)
    mgd.observe({"res3": found})
    mgd.absorb(lambda tensor: None, decay=0)
    (report,) = mgd.solve()
    assert (report.images, report.skipped) == (2, 1)
    assert torch.equal(mgd._matchings["res3"].groups, expected.groups)
    assert torch.equal(mgd._matchings["res3"].margin, expected.margin)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        (2, 4, [[0, 1, 0, 1], [1, 0, 1, 0]]),
        (2, 3, [[0, 1, 0], [1, 0, 1]]),
        (3, 2, [[0, 1], [1, 0], [0, 1]]),
    ],
)
def test_costs_of_the_identity_by_hand(student, teacher, expected):
    assert control_cost("identity", student, teacher).tolist() == expected


@pytest.mark.parametrize(
    ("student", "teacher", "options", "groups"),
    [
        (2, 6, {}, [[0, 2, 4], [1, 3, 5]]),
        (2, 5, {}, [[0, 2], [1, 3]]),
        (2, 5, {"spread": True}, [[0, 2, 4], [1, 3, -1]]),
        (2, 6, {"reducer": "sparse"}, [[0], [1]]),
        (4, 2, {}, [[0], [1], [0], [1]]),
    ],
)
def test_the_identity_takes_teacher_channels_by_number(student, teacher, options, groups):
    mgd = solved(features(student, teacher), control=("identity", 0), **options)
    assert mgd._matchings["res3"].groups.tolist() == groups


def test_the_random_assignment_is_valid_and_the_same_at_every_solution():
    """Whatever the features: it is drawn once. The reported cost stays that of the features."""
    found, others = features(4, 16), features(4, 16, seed=5)
    mgd = solved(found, control=("random", 0))
    groups = mgd._matchings["res3"].groups
    assert sorted(groups.flatten().tolist()) == list(range(16))
    assert not torch.equal(groups, solved(found)._matchings["res3"].groups)
    assert not torch.equal(groups, solved(found, control=("identity", 0))._matchings["res3"].groups)
    another = solved(found, control=("random", 1))
    assert not torch.equal(groups, another._matchings["res3"].groups)
    mgd.observe({"res3": others})
    mgd.absorb(lambda tensor: None, decay=0)
    (report,) = mgd.solve()
    assert torch.equal(mgd._matchings["res3"].groups, groups)
    assert report.changed == 0
    cost = channel_cost(others.student, others.teacher)
    assert report.cost == pytest.approx(assignment_cost(cost, groups), rel=1e-5)
    best = solved(others)
    assert report.cost > assignment_cost(cost, best._matchings["res3"].groups)


def test_a_control_is_not_resumed_as_the_method():
    saved = solved(features(4, 8), control=("random", 0)).state_dict()
    with pytest.raises(ConfigError, match=r"EXPERIMENT\.ASSIGNMENT = 'solved'.*'random'"):
        built(4).load_state_dict(saved)
    with pytest.raises(ConfigError, match=r"EXPERIMENT\.ASSIGNMENT_SEED = 1.*made with 0"):
        built(4, control=("random", 1)).load_state_dict(saved)
