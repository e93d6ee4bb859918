"""Divergence of the softmax over positions: by hand, and what it does not depend on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det.maths.channel_softmax import channel_softmax_loss

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)
NAN = float("nan")


def row(*channels: list[float], **options) -> Tensor:
    """(1, C, 1, W)"""
    return torch.tensor(channels, **options)[None, :, None]


def drawn(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, 3, 3, 4, generator=generator, dtype=torch.float64)


# Softmax of (0, 2 ln 3) / 2 is (1/4, 3/4), that of (0, 0) is (1/2, 1/2).
DIVERGENCE = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)


def test_value_by_hand() -> None:
    """The second channel agrees; the mean is over both."""
    student, teacher = row([0.0, 0.0], [1.0, 2.0]), row([0.0, 2 * math.log(3)], [1.0, 2.0])
    loss = channel_softmax_loss(student, teacher, temperature=2.0)
    assert loss.item() == pytest.approx(4 * DIVERGENCE / 2)


def test_gradient_by_hand() -> None:
    """T (p_student - p_teacher) for each channel."""
    student = row([0.0, 0.0]).requires_grad_()
    channel_softmax_loss(student, row([0.0, 2 * math.log(3)]), temperature=2.0).backward()
    assert student.grad.flatten().tolist() == pytest.approx([2 * 0.25, -2 * 0.25])


@pytest.mark.parametrize("held", [9.0, NAN, float("inf")])
def test_padding_is_left_out_whatever_it_holds(held: float) -> None:
    student = row([0.0, 0.0, held]).requires_grad_()
    mask = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    loss = channel_softmax_loss(student, row([0.0, 2 * math.log(3), -held]), mask, temperature=2.0)
    assert loss.item() == pytest.approx(4 * DIVERGENCE)
    loss.backward()
    assert student.grad.flatten().tolist() == pytest.approx([0.5, -0.5, 0])


@PROPERTY
@given(st.integers(0, 99), st.floats(-1e3, 1e3), st.floats(0.5, 8))
def test_it_is_0_for_channels_that_agree_up_to_a_shift_and_above_for_others(seed, shift, temperature) -> None:
    student, teacher = drawn(seed), drawn(seed + 100)
    assert channel_softmax_loss(student + shift, student, temperature=temperature).item() == pytest.approx(
        0, abs=1e-9
    )
    loss = channel_softmax_loss(student, teacher, temperature=temperature).item()
    assert loss > 0
    assert channel_softmax_loss(student, teacher + shift, temperature=temperature).item() == pytest.approx(
        loss, rel=1e-6
    )


@PROPERTY
@given(st.integers(0, 99), st.integers(1, 3))
def test_batches_images_and_padding_do_not_change_it(seed: int, times: int) -> None:
    student, teacher = drawn(seed), drawn(seed + 100)
    expected = pytest.approx(channel_softmax_loss(student, teacher).item(), rel=1e-9)
    assert channel_softmax_loss(*(x.repeat(times, 1, 1, 1) for x in (student, teacher))).item() == expected
    assert channel_softmax_loss(*(x.repeat(1, 1, 2, times) for x in (student, teacher))).item() == expected
    mask = torch.zeros(2, 1, 3 + times, 6, dtype=torch.bool)
    mask[..., :3, :4] = True
    padded = [torch.full((2, 3, 3 + times, 6), NAN, dtype=torch.float64) for _ in range(2)]
    for x, whole in zip((student, teacher), padded):
        whole[..., :3, :4] = x
    assert channel_softmax_loss(*padded, mask).item() == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_far_apart_give_a_finite_float32_loss(dtype: torch.dtype) -> None:
    """All of the teacher's weight is at a position to which the student gives e^-60000."""
    student = row([6e4, 0.0], dtype=dtype).requires_grad_()
    loss = channel_softmax_loss(student, row([0.0, 6e4], dtype=dtype), torch.ones(1, 1, 1, 2).bool())
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(6e4, rel=0.01)
    assert student.grad.flatten().tolist() == [1, -1]


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher = drawn(0).requires_grad_(), drawn(1).requires_grad_()
    channel_softmax_loss(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 1, 1, 2\) and teacher \(1, 2, 1, 2\) must have one shape"):
        channel_softmax_loss(row([0.0, 0.0]), row([0.0, 0.0], [0.0, 0.0]))
