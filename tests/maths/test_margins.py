"""Margins: the expected negative value of a teacher channel, from its norm and from its values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from mgd_det.maths.margins import batch_norm_margin, empirical_margin

PROPERTY = settings(max_examples=50, deadline=None, derandomize=True, database=None)
CUTOFF = stats.norm.isf(0.001)  # beta / |gamma| where a value is negative with probability .001


def margin_of(weight: float, bias: float) -> float:
    """In double; the formula's own precision, not that of the tensor it is stored in."""
    double = torch.float64
    one = torch.tensor([weight], dtype=double), torch.tensor([bias], dtype=double)
    return batch_norm_margin(*one).item()


def integrated(weight: float, bias: float) -> float:
    """E[x | x < 0] of x ~ Normal(bias, |weight|), by quadrature."""
    normal = stats.norm(bias, abs(weight))
    low = min(bias, 0.0) - 12 * abs(weight)  # what lies below weighs less than 1e-32
    moment, _ = integrate.quad(lambda x: x * normal.pdf(x), low, 0, epsabs=0, epsrel=1e-11)
    return moment / normal.cdf(0)


class TestBatchNormMargin:
    def test_of_the_standard_normal_is_minus_the_root_of_two_over_pi(self) -> None:
        # phi(0) / Phi(0) = (1 / sqrt(2 pi)) / (1 / 2) = sqrt(2 / pi) = .7978845608
        assert margin_of(1.0, 0.0) == pytest.approx(-0.7978845608028654, rel=1e-12)

    def test_one_deviation_above_zero(self) -> None:
        # phi(1) = .2419707245, Phi(-1) = .1586552539: 1 - 1.5251352761 = -.5251352761
        assert margin_of(1.0, 1.0) == pytest.approx(-0.5251352761609812, rel=1e-12)

    def test_one_deviation_below_zero(self) -> None:
        # phi(1) = .2419707245, Phi(1) = .8413447461: -1 - .2875999709 = -1.2875999709
        assert margin_of(1.0, -1.0) == pytest.approx(-1.2875999709391784, rel=1e-12)

    @pytest.mark.parametrize("weight", [0.02, 0.7, -0.7, 5.0, -5.0])
    @pytest.mark.parametrize("deviations", [-6.0, -2.5, -0.3, 0.0, 0.4, 2.0, 3.0])
    def test_is_the_integral_of_the_negative_part(self, weight: float, deviations: float) -> None:
        bias = deviations * abs(weight)
        assert margin_of(weight, bias) == pytest.approx(integrated(weight, bias), rel=1e-9)

    @pytest.mark.parametrize("weight", [0.02, -0.7, 5.0])
    @pytest.mark.parametrize("deviations", [-6.0, -0.3, 0.4, 3.0])
    def test_is_the_mean_of_the_truncated_normal(self, weight: float, deviations: float) -> None:
        sigma = abs(weight)
        expected = stats.truncnorm.mean(-math.inf, -deviations, deviations * sigma, sigma)
        assert margin_of(weight, deviations * sigma) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("weight", [2.0, -2.0])
    @pytest.mark.parametrize("deviations", [CUTOFF + 1e-6, 4.0, 40.0, 1e6])
    def test_where_hardly_anything_is_negative_is_three_deviations_below_zero(
        self, weight: float, deviations: float
    ) -> None:
        assert margin_of(weight, deviations * 2.0) == -6.0

    def test_right_before_that_is_still_the_expectation(self) -> None:
        bias = 2.0 * (CUTOFF - 1e-6)
        assert margin_of(2.0, bias) == pytest.approx(integrated(2.0, bias), rel=1e-9)

    @pytest.mark.parametrize("deviations", [10.0, 40.0, 1e6])
    def test_far_below_zero_is_the_bias(self, deviations: float) -> None:
        # Everything is negative: the mean is the bias, up to .5 phi(10) = 4e-23.
        assert margin_of(0.5, -deviations * 0.5) == pytest.approx(-deviations * 0.5, rel=1e-12)

    @pytest.mark.parametrize(("bias", "expected"), [(-2.5, -2.5), (0.0, 0.0), (2.5, 0.0)])
    @pytest.mark.parametrize("weight", [0.0, -0.0])
    def test_of_a_constant_channel_is_its_negative_part(
        self, weight: float, bias: float, expected: float
    ) -> None:
        assert margin_of(weight, bias) == expected

    @PROPERTY
    @given(st.floats(1e-30, 1e4), st.floats(-1e4, 1e4))
    def test_does_not_depend_on_the_sign_of_the_weight(self, weight: float, bias: float) -> None:
        assert margin_of(-weight, bias) == margin_of(weight, bias)

    @PROPERTY
    @given(
        st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32),
        st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-1, 1, width=32),
    )
    def test_is_finite_and_neither_positive_nor_above_the_bias(self, weight: float, bias: float) -> None:
        margin = margin_of(weight, bias)
        assert math.isfinite(margin)
        assert margin <= min(bias, 0.0)

    @PROPERTY
    @given(st.floats(0.01, 100.0), st.floats(-5.0, 5.0), st.sampled_from([0.25, 2.0, 1024.0]))
    def test_scales_with_the_channel(self, weight: float, bias: float, scale: float) -> None:
        scaled = margin_of(weight * scale, bias * scale)
        assert scaled == pytest.approx(margin_of(weight, bias) * scale, rel=1e-12)

    def test_is_computed_channel_by_channel(self) -> None:
        weight = torch.tensor([1.0, -1.0, 0.0, 2.0])
        bias = torch.tensor([0.0, 1.0, -3.0, 50.0])
        expected = torch.tensor([-0.7978845608, -0.5251352762, -3.0, -6.0])
        torch.testing.assert_close(batch_norm_margin(weight, bias), expected, rtol=0, atol=1e-7)

    @pytest.mark.parametrize(
        ("given_dtype", "expected"),
        [
            (torch.float16, torch.float32),
            (torch.bfloat16, torch.float32),
            (torch.float32, torch.float32),
            (torch.float64, torch.float64),
        ],
    )
    def test_comes_in_float32_or_wider(self, given_dtype: torch.dtype, expected: torch.dtype) -> None:
        ones = torch.ones(3, dtype=given_dtype)
        assert batch_norm_margin(ones, ones).dtype == expected

    def test_carries_no_gradient(self) -> None:
        weight, bias = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.zeros(3))
        assert not batch_norm_margin(weight, bias).requires_grad


class TestEmpiricalMargin:
    def test_is_the_mean_of_the_negative_values(self) -> None:
        # Values -1, -3, -.5 and -10: -4.5 / 3 = -1.5 and -10 / 1.
        total, count = torch.tensor([-4.5, -10.0]), torch.tensor([3.0, 1.0])
        assert empirical_margin(total, count).tolist() == [-1.5, -10.0]

    def test_of_a_channel_that_was_never_negative_is_zero(self) -> None:
        margin = empirical_margin(torch.tensor([0.0, -2.0]), torch.tensor([0.0, 4.0]))
        assert margin.tolist() == [0.0, -0.5]

    def test_is_float32_from_sums_in_double(self) -> None:
        sums = torch.tensor([-1e12], dtype=torch.float64), torch.tensor([4e11], dtype=torch.float64)
        margin = empirical_margin(*sums)
        assert margin.dtype == torch.float32
        assert margin.tolist() == [-2.5]

    def test_of_many_draws_is_that_of_the_norm(self) -> None:
        weight, bias = torch.tensor([0.5, -2.0]), torch.tensor([0.3, -1.0])
        draws = torch.randn(40000, 2, generator=torch.Generator().manual_seed(0)) * weight + bias
        negative = draws.clamp_max(0).sum(0), (draws < 0).sum(0)
        # A negative value deviates by at most |gamma| from its mean, of 11 000 and 27 000 of them:
        # five standard errors are 5 * .5 / sqrt(11000) = .024 and 5 * 2 / sqrt(27000) = .061.
        difference = (empirical_margin(*negative) - batch_norm_margin(weight, bias)).abs()
        assert (difference < torch.tensor([0.024, 0.061])).all()
