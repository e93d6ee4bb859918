"""Which ways a teacher may compute in, and which of them is taken."""

from __future__ import annotations

import math

import pytest
import torch

from mgd_det.modeling.teacher_ways import Way, fastest, relative_error, ways

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAIN, HALF, LAST = Way("float32", False), Way("bfloat16", False), Way("float32", True)


def test_what_there_is_to_choose_from():
    assert ways("auto", False, CPU) == [PLAIN, HALF]
    assert ways("auto", None, CUDA) == [PLAIN, HALF, Way("float16", False)]
    assert ways("", "auto", CPU) == [Way("", False), Way("", True)]
    assert ways("auto", "auto", CPU) == [PLAIN, HALF, LAST, Way("bfloat16", True)]
    assert str(Way("", True)) == "the precision of the training, channels_last"


def test_the_error_is_the_largest_of_all_taps():
    pairs = [torch.tensor([3.0, 4.0]), torch.tensor([1.0])], [torch.tensor([3.0, 3.0]), torch.tensor([1.0])]
    assert relative_error(*pairs) == pytest.approx(1 / math.sqrt(18))
    assert relative_error([torch.zeros(2)], [torch.zeros(2)]) == 0
    assert math.isnan(relative_error([torch.tensor([math.nan]), torch.ones(1)], [torch.ones(1)] * 2))


def work(rounds: int, values: list[float]):
    """Features of a head and of the backbone, after so much work."""

    def compute():
        x = torch.eye(200)
        for _ in range(rounds):
            x = x @ x
        return {"head": [torch.tensor(values)], "res3": torch.ones(2), "other": object()}

    return compute


@pytest.mark.parametrize(
    ("quick", "expected"),
    [([1.0, 1.015], LAST), ([1.0, 1.05], PLAIN), ([1.0, math.inf], PLAIN), ([1.0, math.nan], PLAIN)],
)
def test_the_fastest_that_agrees(quick, expected):
    """The other one takes a thousandth of the time."""
    jobs = {PLAIN: work(1000, [1.0, 1.0]), LAST: work(1, quick)}
    assert fastest([PLAIN, LAST], jobs.__getitem__) == expected


def test_the_first_way_is_always_there():
    jobs = {PLAIN: work(1, [math.nan]), LAST: work(1, [1.0])}
    assert fastest([PLAIN, LAST], jobs.__getitem__) == PLAIN
