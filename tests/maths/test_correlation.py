"""1 minus the correlation of channels: by hand, and what it does not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det.maths.correlation import correlation_loss

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
NAN = float("nan")


def row(*channels: list[float]) -> Tensor:
    """(1, C, 1, W)"""
    return torch.tensor(channels)[None, :, None]


def drawn(seed: int, n: int = 2, c: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, c, 3, 4, generator=generator, dtype=torch.float64)


def test_value_by_hand() -> None:
    """Of 1 2 3 4 and 1 3 2 4 it is (2.25 - 0.25 - 0.25 + 2.25) / 5 = 0.8, of 1 2 3 4 and 4 3 2 1 it is -1."""
    student = row([1.0, 2, 3, 4], [1.0, 2, 3, 4])
    teacher = row([1.0, 3, 2, 4], [4.0, 3, 2, 1])
    assert correlation_loss(student, teacher).item() == pytest.approx((0.2 + 2.0) / 2, abs=1e-5)


def test_images_are_one_population() -> None:
    """Each image alone has no deviation; together they are 1 1 2 2 and 5 5 3 3, which is -1."""
    student, teacher = torch.tensor([[1.0, 1], [2, 2]]), torch.tensor([[5.0, 5], [3, 3]])
    assert correlation_loss(student[:, None, None], teacher[:, None, None]).item() == pytest.approx(
        2, abs=1e-4
    )


def test_gradient_by_hand() -> None:
    """With unit vectors u, v and the deviation d, the gradient is -(v - r u) / (n d): here r = 0, d = 1."""
    student = row([1.0, -1.0, 1.0, -1.0]).requires_grad_()
    correlation_loss(student, row([1.0, 1.0, -1.0, -1.0])).backward()
    assert student.grad.flatten().tolist() == pytest.approx([-0.25, -0.25, 0.25, 0.25], abs=1e-5)


@PROPERTY
@given(st.integers(0, 99), st.integers(0, 99))
def test_it_is_one_minus_pearsons_correlation(first: int, second: int) -> None:
    student, teacher = drawn(first), drawn(second + 100)
    flat = (x.transpose(0, 1).flatten(1).numpy() for x in (student, teacher))
    expected = 1 - np.mean([np.corrcoef(s, t)[0, 1] for s, t in zip(*flat)])
    assert correlation_loss(student, teacher).item() == pytest.approx(expected, abs=1e-5)


SCALES, SHIFTS = st.floats(1e-2, 1e3), st.floats(-1e2, 1e2)


@PROPERTY
@given(st.integers(0, 99), st.tuples(SCALES, SCALES, SCALES), st.tuples(SHIFTS, SHIFTS, SHIFTS))
def test_scale_and_shift_of_a_channel_on_either_side_do_not_matter(seed, scales, shifts) -> None:
    student, teacher = drawn(seed), drawn(seed + 100)
    scale, shift = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (scales, shifts))
    expected = pytest.approx(correlation_loss(student, teacher).item(), abs=1e-3)
    assert correlation_loss(student * scale + shift, teacher).item() == expected
    assert correlation_loss(student, teacher * scale + shift).item() == expected


@PROPERTY
@given(st.integers(0, 99))
def test_it_is_0_for_equal_channels_and_2_for_opposite_ones(seed: int) -> None:
    x = drawn(seed)
    assert correlation_loss(x, x).item() == 0
    assert correlation_loss(x, -x).item() == pytest.approx(2, abs=1e-5)


@PROPERTY
@given(st.integers(0, 99), st.integers(1, 3))
def test_batches_images_and_padding_do_not_change_it(seed: int, times: int) -> None:
    student, teacher = drawn(seed), drawn(seed + 100)
    expected = pytest.approx(correlation_loss(student, teacher).item(), rel=1e-9)
    assert correlation_loss(*(x.repeat(times, 1, 1, 1) for x in (student, teacher))).item() == expected
    assert correlation_loss(*(x.repeat(1, 1, 2, times) for x in (student, teacher))).item() == expected
    mask = torch.zeros(2, 1, 3 + times, 6, dtype=torch.bool)
    mask[..., :3, :4] = True
    padded = [torch.full((2, 3, 3 + times, 6), NAN, dtype=torch.float64) for _ in range(2)]
    for x, whole in zip((student, teacher), padded):
        whole[..., :3, :4] = x
    padded[0].requires_grad_()
    loss = correlation_loss(*padded, mask)
    assert loss.item() == expected
    loss.backward()
    assert padded[0].grad.isfinite().all()
    assert not padded[0].grad[..., 3:, :].any()


@pytest.mark.parametrize("value", [0.0, 0.1, 1000.3, -1e6])
@pytest.mark.parametrize("side", ["student", "teacher"])
def test_a_constant_channel_counts_a_half_and_has_no_gradient(value: float, side: str) -> None:
    varying, constant = drawn(0, c=1).float(), torch.full((2, 1, 3, 4), value)
    student, teacher = (constant, varying) if side == "student" else (varying, constant)
    student = student.clone().requires_grad_()
    loss = correlation_loss(student, teacher)
    loss.backward()
    assert loss.item() == pytest.approx(0.5, abs=1e-5)
    assert student.grad.abs().max().item() < 1e-5


def test_one_position_is_constant() -> None:
    """A map of one position is constant, as p7 of one small image is."""
    student = torch.ones(1, 2, 1, 1, requires_grad=True)
    loss = correlation_loss(student, torch.full((1, 2, 1, 1), 5.0))
    loss.backward()
    assert loss.item() == 0
    assert not student.grad.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_float32_loss(dtype: torch.dtype) -> None:
    """Squares of 30,000 are beyond float16."""
    student, teacher = row([3e4, -3e4]).to(dtype).requires_grad_(), row([1.0, -1.0]).to(dtype)
    loss = correlation_loss(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert student.grad.isfinite().all()


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = drawn(0).requires_grad_(), drawn(1).requires_grad_()
    correlation_loss(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 1, 3, 4\) and teacher \(2, 3, 3, 4\) must have one shape"):
        correlation_loss(drawn(0, c=1), drawn(1))
