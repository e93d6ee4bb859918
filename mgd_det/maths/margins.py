"""Margins: what counts as "negative enough" in a teacher channel.

Pure functions on tensors, no Detectron2. The margin of a channel is the mean of its negative values
(Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, section 3.2): a student that
is already below it is not pushed further, since the ReLU drops both.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_NEGATIVE_PROBABILITY = 0.001  # below it the expectation is not meaningful; 3 sigma takes its place


def batch_norm_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Expected value of the negative part of Normal(bias, |weight|), channel by channel.

    Right where the affine parameters of the norm before the ReLU are the moments of its output: a
    trained batch norm, not one with statistics folded into weight and bias.

    Args:
        weight, bias: (C,), gamma and beta of the norm.

    Returns:
        (C,) float32 or wider: `beta - |gamma| phi(z) / Phi(-z)`, z = beta / |gamma|, where a value is
        negative with probability over 0.001; -3 |gamma| elsewhere; min(beta, 0) where gamma is 0.
    """
    sigma = weight.detach().double().abs()
    mean = bias.detach().double()
    z = mean / sigma.clamp_min(torch.finfo(torch.float64).tiny)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    negative = 0.5 * torch.erfc(z / math.sqrt(2))
    expectation = mean - sigma * density / negative.clamp_min(MIN_NEGATIVE_PROBABILITY)
    # With sigma 0 the first is the (negative) mean, the second 0: min(mean, 0), as it should be.
    margin = torch.where(negative > MIN_NEGATIVE_PROBABILITY, expectation, -3 * sigma)
    return margin.to(torch.promote_types(weight.dtype, torch.float32))


def empirical_margin(negative_sum: Tensor, negative_count: Tensor) -> Tensor:
    """Mean of the negative values that were seen, E[t | t < 0]; 0 for a channel that had none.

    Args:
        negative_sum, negative_count: (C,), sum and number of the negative values of each channel.

    Returns:
        (C,) float32.
    """
    return (negative_sum / negative_count.clamp_min(1)).float()
