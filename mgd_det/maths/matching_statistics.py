"""Gather the sums over images from which a matching and its margins are computed.

Shapes: N images, Cs student channels, Ct teacher channels, H x W positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import torch
from torch import Tensor

from .margins import empirical_margin
from .matching import check_positions, flat_channels, similarity_sum


class MatchingStatistics:
    """The sums of one tap over the images seen so far.

    They are kept in float64, so that those of several processes add up to those of one, in any order, to
    well under the differences that could change an assignment. An image with a NaN or infinity at an
    unpadded position is left out.

    Args:
        num_student, num_teacher: Cs and Ct.
        device: device of the sums, which is that of the features.

    Attributes:
        similarity: (Cs, Ct) cosine similarities of the channels.
        images: (1,) number of images in the sums.
        skipped: (1,) number of images left out.
        negative_sum: (Ct,) sum of the teacher's negative values.
        negative_count: (Ct,) number of the teacher's negative values.
    """

    def __init__(self, num_student: int, num_teacher: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        self.similarity = zeros(num_student, num_teacher)
        self.images = zeros(1)
        self.skipped = zeros(1)
        self.negative_sum = zeros(num_teacher)
        self.negative_count = zeros(num_teacher)

    @torch.no_grad()
    def add(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
        """Add a batch.

        Args:
            student: (N, Cs, H, W), any float dtype: the raw features, before the norm on the student's side.
            teacher: (N, Ct, H, W), any float dtype.
            mask: (N, 1, H, W) bool, True at the unpadded positions; None if there is no padding.

        Raises:
            ValueError: student and teacher differ in N, H or W.
        """
        check_positions(student, teacher)
        student, teacher = flat_channels(student, mask), flat_channels(teacher, mask)
        similarity, sound = similarity_sum(student, teacher)
        self.similarity += similarity
        self.images += sound.sum()
        self.skipped += (~sound).sum()
        negative = teacher.clamp_max(0)
        for total, values in (
            (self.negative_sum, negative.sum(2)),
            (self.negative_count, -negative.sign().sum(2)),
        ):
            total += values.double().masked_fill(~sound[:, None], 0).sum(0)

    @property
    def sums(self) -> dict[str, Tensor]:
        """All sums by name, as checkpoints hold them. They are not copies: change them in place only."""
        return {
            "similarity": self.similarity,
            "images": self.images,
            "skipped": self.skipped,
            "negative_sum": self.negative_sum,
            "negative_count": self.negative_count,
        }

    def reduce(self, sum_over_ranks: Callable[[Tensor], None]) -> None:
        """Replace every sum by its sum over all processes.

        Args:
            sum_over_ranks: does so for one tensor, in place.
        """
        for tensor in self.sums.values():
            sum_over_ranks(tensor)

    def add_scaled(self, factor: float, earlier: MatchingStatistics) -> None:
        """Add `factor` times the sums of earlier statistics, which may lie on another device."""
        for name, tensor in self.sums.items():
            tensor.add_(earlier.sums[name].to(tensor.device), alpha=factor)

    @classmethod
    def from_sums(cls, sums: Mapping[str, Tensor], device: torch.device) -> MatchingStatistics:
        """Return statistics with a copy of the given :attr:`sums` on the device."""
        num_student, num_teacher = sums["similarity"].shape
        statistics = cls(num_student, num_teacher, device)
        for name, tensor in statistics.sums.items():
            tensor.copy_(sums[name])
        return statistics

    def cost(self) -> Tensor:
        """Return the matching cost, :func:`mgd_det.matching.channel_cost`, of the images seen: (Cs, Ct)."""
        return 2 - 2 * self.similarity / self.images

    def margin(self) -> Tensor:
        """Return the empirical margins, (Ct,) float32, of the images seen."""
        return empirical_margin(self.negative_sum, self.negative_count)
