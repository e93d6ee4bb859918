"""The mean squared error over the positions that count, by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mgd_det.maths.squared_error import mean_squared_error

NAN = float("nan")


def row(*channels: list[float], **options) -> Tensor:
    """(1, C, 1, W)"""
    return torch.tensor(channels, **options)[None, :, None]


STUDENT, TEACHER = row([1.0, 2.0, NAN], [3.0, 0.0, 1.0]), row([0.0, 0.0, 0.0], [0.0, 1.0, NAN])
MASK = row([True, True, False])


def test_it_is_the_mean_over_channels_and_unpadded_positions() -> None:
    """Squares 1, 9 and 4, 1; the third position is padding."""
    assert mean_squared_error(STUDENT, TEACHER, MASK).item() == 15 / 4
    assert mean_squared_error(STUDENT[..., :2], TEACHER[..., :2]).item() == 15 / 4


def test_positions_count_by_their_weight() -> None:
    """Mean squares 5 and 2.5; the third position has a weight and does not count all the same."""
    found = mean_squared_error(STUDENT, TEACHER, MASK, row([3.0, 1.0, 8.0]))
    assert found.item() == (3 * 5 + 2.5) / 4


def test_where_nothing_counts_it_is_zero_without_a_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    found = mean_squared_error(student, TEACHER, MASK, row([0.0, 0.0, 1.0]))
    found.backward()
    assert found.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_float32_loss(dtype: torch.dtype) -> None:
    """300 squared is beyond float16."""
    found = mean_squared_error(row([300.0], dtype=dtype), row([0.0], dtype=dtype))
    assert found.dtype == torch.float32
    assert found.item() == 300**2
