"""The golden cases: figures of the reference implementation of Matching Guided Distillation.

`amp_*`, `sm_*` and `sp_*` are absolute max pooling, sparse matching and simple pooling; the two
numbers are the student's and the teacher's channels. Row r of `assignment` belongs to student
channel r % Cs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.device import DEVICE
from torch import Tensor

from mgd_det.maths.losses import partial_l2, pooled_partial_l2
from mgd_det.maths.margins import batch_norm_margin
from mgd_det.maths.matching import assign_groups, assign_one_to_one, channel_cost
from mgd_det.maths.matching_statistics import MatchingStatistics
from mgd_det.maths.reducers import find_reducer

FOLDER = Path(__file__).parents[1] / "golden"
CASES = ["amp_8_32", "amp_equal_16", "amp_nondiv_12_40", "sm_8_32", "sp_8_24"]
AMP = [name for name in CASES if name.startswith("amp")]

TOLERANCE = 1e-5  # cost and margin; relative for reduction and loss
MATCHING_TOLERANCE = 1e-4  # relative, of the total cost


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(DEVICE)


def reference_groups(name: str, case: Mapping[str, np.ndarray]) -> Tensor:
    cs = case["mean_cost"].shape[0]
    rows = case["assignment"].reshape(-1, cs).T  # row r is member r // Cs of student r % Cs
    return tensor(rows[:, :1] if name.startswith("sm") else rows)


def total_cost(case: Mapping[str, np.ndarray], groups: Tensor) -> float:
    return tensor(case["mean_cost"]).gather(1, groups.to(DEVICE)).sum().item()


def relative_error(got: Tensor, expected: np.ndarray) -> float:
    """Largest difference over the largest magnitude expected."""
    assert got.shape == expected.shape
    return np.abs(got.double().cpu().numpy() - expected).max() / np.abs(expected).max()


def test_every_file_is_a_case() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.npz")) == CASES


@pytest.mark.parametrize("name", CASES)
def test_cost(name: str) -> None:
    case = load(name)
    student, teacher = tensor(case["cost_s"]).flatten(0, 1), tensor(case["cost_t"]).flatten(0, 1)
    cost = channel_cost(student, teacher).double()
    torch.testing.assert_close(cost, tensor(case["mean_cost"]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_cost_gathered_batch_by_batch(name: str) -> None:
    case = load(name)
    statistics = MatchingStatistics(*case["mean_cost"].shape, DEVICE)
    for student, teacher in zip(tensor(case["cost_s"]), tensor(case["cost_t"])):
        statistics.add(student, teacher, None)
    expected = tensor(case["mean_cost"])
    torch.testing.assert_close(statistics.cost(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
def test_margin(name: str) -> None:
    case = load(name)
    margin = batch_norm_margin(tensor(case["bn_weight"]), tensor(case["bn_bias"]))
    torch.testing.assert_close(margin, tensor(case["margin"]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("own_cost", [False, True], ids=["given_cost", "own_cost"])
def test_assignment_is_as_cheap_as_the_reference(name: str, own_cost: bool) -> None:
    case = load(name)
    cost = tensor(case["mean_cost"])
    if own_cost:
        cost = channel_cost(tensor(case["cost_s"]).flatten(0, 1), tensor(case["cost_t"]).flatten(0, 1))
    groups = assign_one_to_one(cost) if name.startswith("sm") else assign_groups(cost)
    reference = reference_groups(name, case)
    assert groups.shape == reference.shape
    assert len(groups.unique()) == groups.numel()  # no teacher channel twice
    limit = total_cost(case, reference) * (1 + MATCHING_TOLERANCE)
    assert total_cost(case, groups) <= limit


def test_assignment_over_all_teachers_is_cheaper_than_over_the_first_by_index() -> None:
    case = load("amp_nondiv_12_40")  # g * Cs = 36 of 40
    cost, reference = tensor(case["mean_cost"]), reference_groups("amp_nondiv_12_40", case)
    assert reference.max() < 36
    groups = assign_groups(cost)
    assert groups.max() >= 36
    assert total_cost(case, groups) < total_cost(case, reference)
    cropped = assign_groups(cost[:, :36])
    expected = pytest.approx(total_cost(case, reference), rel=MATCHING_TOLERANCE)
    assert total_cost(case, cropped) == expected


def test_spread_assignment_uses_all_forty_teachers() -> None:
    groups = assign_groups(tensor(load("amp_nondiv_12_40")["mean_cost"]), spread=True)
    assert groups.shape == (12, 4)
    assert sorted(groups[groups >= 0].tolist()) == list(range(40))
    assert ((groups >= 0).sum(1) >= 3).all()


@pytest.mark.parametrize("name", CASES)
def test_reduction(name: str) -> None:
    case = load(name)
    reducer = find_reducer(name.split("_")[0])
    assert reducer is not None
    groups = reference_groups(name, case)
    reduced = reducer.features(tensor(case["loss_t"]), groups)
    assert relative_error(reduced, case["reduced_t"]) <= TOLERANCE
    margin = reducer.margin(tensor(case["margin"]), groups)
    assert relative_error(margin, case["reduced_margin"]) <= TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient(name: str) -> None:
    case = load(name)
    reducer = find_reducer(name.split("_")[0])
    assert reducer is not None
    target = reducer.features(tensor(case["loss_t"]), reference_groups(name, case))
    student = tensor(case["loss_s"]).requires_grad_()
    loss = partial_l2(student, target, tensor(case["reduced_margin"]), "sum")
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"].item(), rel=TOLERANCE)
    assert relative_error(student.grad, case["grad_s"]) <= TOLERANCE
    mean = partial_l2(student, target, tensor(case["reduced_margin"]), "mean")
    assert mean.item() == pytest.approx(case["loss"].item() / student.numel(), rel=TOLERANCE)


@pytest.mark.parametrize("name", AMP)
def test_pooled_loss_and_gradient(name: str) -> None:
    case = load(name)
    student, groups = tensor(case["loss_s"]).requires_grad_(), reference_groups(name, case)
    margin = tensor(case["reduced_margin"])
    loss = pooled_partial_l2(student, tensor(case["loss_t"]), groups, margin, "sum")
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"].item(), rel=TOLERANCE)
    assert relative_error(student.grad, case["grad_s"]) <= TOLERANCE
