"""Compute margins: the values below which a channel counts as negative enough.

The functions are pure and know nothing of Detectron2. The margin of a teacher channel is the mean of its
negative values (Heo et al., "A Comprehensive Overhaul of Feature Distillation", ICCV 2019, section 3.2). A
student that is already below it is not pushed further, since the ReLU drops both. In the shapes, C is the
number of channels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_NEGATIVE_PROBABILITY = 0.001  # Below it the expectation is not meaningful; -3 sigma takes its place.


def batch_norm_margin(weight: Tensor, bias: Tensor) -> Tensor:
    """Return the expected value of a negative output of a batch norm, channel by channel.

    The output is taken as Normal(beta, |gamma|). This holds for a trained batch norm, not for one whose
    statistics have been folded into its weight and bias.

    Args:
        weight, bias: (C,) gamma and beta of the norm before the ReLU, any float dtype.

    Returns:
        (C,) float32 or wider: `beta - |gamma| phi(z) / Phi(-z)` with z = beta / |gamma|, if a value is
        negative with a probability over 0.001, otherwise -3 |gamma|; min(beta, 0) if gamma is 0.
    """
    sigma = weight.detach().double().abs()
    mean = bias.detach().double()
    z = mean / sigma.clamp_min(torch.finfo(torch.float64).tiny)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    negative = 0.5 * torch.erfc(z / math.sqrt(2))
    expectation = mean - sigma * density / negative.clamp_min(MIN_NEGATIVE_PROBABILITY)
    # With sigma 0 the first is the (negative) mean and the second is 0: together, min(mean, 0).
    margin = torch.where(negative > MIN_NEGATIVE_PROBABILITY, expectation, -3 * sigma)
    return margin.to(torch.promote_types(weight.dtype, torch.float32))


def empirical_margin(negative_sum: Tensor, negative_count: Tensor) -> Tensor:
    """Return the mean of the negative values that were seen, E[t | t < 0], or 0 for a channel without any.

    Args:
        negative_sum, negative_count: (C,) sum and number of each channel's negative values.

    Returns:
        (C,) float32.
    """
    return (negative_sum / negative_count.clamp_min(1)).float()
