"""Mean and variance of channels, by hand."""

from __future__ import annotations

import pytest
import torch

from mgd_det.maths.moments import (
    centred_and_variance,
    position_count,
    with_moments_of,
    without_padding,
)

NAN, INF = float("nan"), float("inf")


def test_moments_are_of_all_images_and_positions_of_a_channel() -> None:
    """Channel 0: 1, 3 and 5, 7, mean 4, variance (9 + 1 + 1 + 9) / 4; channel 1 is constant."""
    x = torch.tensor([[[[1.0, 3.0]], [[2.0, 2.0]]], [[[5.0, 7.0]], [[2.0, 2.0]]]])
    centred, mean, variance = centred_and_variance(x, None)
    assert centred[:, 0].tolist() == [[[-3, -1]], [[1, 3]]]
    assert not centred[:, 1].any()
    assert mean.tolist() == [[[[4]], [[2]]]]
    assert variance.tolist() == [[[[5]], [[0]]]]
    assert position_count(x, None) == 4


def test_padding_is_left_out_whatever_it_holds() -> None:
    """1, 3 and 5 are left: mean 3, variance 8 / 3."""
    mask = torch.tensor([[[[True, True]]], [[[True, False]]]])
    x = without_padding(torch.tensor([[[[1.0, 3.0]]], [[[5.0, NAN]]]]), mask)
    assert x.tolist() == [[[[1, 3]]], [[[5, 0]]]]
    centred, mean, variance = centred_and_variance(x, mask)
    assert centred.tolist() == [[[[-2, 0]]], [[[2, 0]]]]
    assert (mean.item(), variance.item()) == (3, pytest.approx(8 / 3))
    assert position_count(x, mask) == 3


def test_nothing_but_padding_is_all_zero() -> None:
    mask = torch.zeros(1, 1, 1, 2, dtype=torch.bool)
    found = centred_and_variance(without_padding(torch.full((1, 1, 1, 2), INF), mask), mask)
    assert not any(x.any() for x in found)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_precision_is_widened(dtype: torch.dtype, wide: torch.dtype) -> None:
    assert without_padding(torch.ones(1, 1, 1, 1, dtype=dtype), None).dtype == wide


def test_features_get_the_moments_of_others() -> None:
    """1, 3 has mean 2 and deviation 1; 30, 10 has 20 and 10. Padding of 4 lies two deviations off."""
    x = torch.tensor([[[[1.0, 3.0, 4.0]], [[5.0, 5.0, 9.0]]]], requires_grad=True)
    other = torch.tensor([[[[30.0, 10.0, NAN]], [[1.0, 3.0, NAN]]]], requires_grad=True)
    mask = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    found = with_moments_of(x, other, mask)
    assert found.flatten().tolist() == pytest.approx([10, 30, 40, 2, 2, 2], rel=1e-5)
    found.square().sum().backward()
    assert other.grad is None
    assert x.grad.isfinite().all()
    assert not x.grad[:, 1].any()  # of a constant channel


def test_features_with_their_own_moments_are_themselves() -> None:
    x = 5 + 3 * torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(with_moments_of(x, x, None), x, atol=1e-4)
