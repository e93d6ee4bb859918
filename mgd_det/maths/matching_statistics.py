"""Sums over images from which a matching and its margins are computed. No Detectron2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable

import torch
from torch import Tensor

from .margins import empirical_margin
from .matching import check_positions, flat_channels, similarity_sum


class MatchingStatistics:
    """Running sums for one tap: channel similarities, images, and the teacher's negative values.

    An image with a NaN or infinity at an unpadded position is left out and counted in `skipped`.

    Plain sums in float64, so that those of several processes add up to those of one, in any order,
    to well under the differences that could change an assignment.

    Args:
        num_student, num_teacher: channels Cs and Ct.
        device: where the features come from.
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
        """Add a batch: (N, Cs, H, W), (N, Ct, H, W), mask (N, 1, H, W) or None."""
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
        """All sums by name; the tensors themselves, to be changed in place."""
        return dict(vars(self))

    def reduce(self, sum_over_ranks: Callable[[Tensor], None]) -> None:
        """Replace every sum by its sum over all processes; `sum_over_ranks` works in place."""
        for tensor in self.sums.values():
            sum_over_ranks(tensor)

    def add_scaled(self, factor: float, earlier: MatchingStatistics) -> None:
        """Add `factor` times what an earlier one saw; stays on its own device, wherever that one was."""
        for name, tensor in self.sums.items():
            tensor.add_(earlier.sums[name].to(tensor.device), alpha=factor)

    @classmethod
    def from_sums(cls, sums: Mapping[str, Tensor], device: torch.device) -> MatchingStatistics:
        """Rebuild from :attr:`sums`."""
        num_student, num_teacher = sums["similarity"].shape
        statistics = cls(num_student, num_teacher, device)
        for name, tensor in statistics.sums.items():
            tensor.copy_(sums[name])
        return statistics

    def cost(self) -> Tensor:
        """(Cs, Ct) mean matching cost of the images seen, as :func:`matching.channel_cost`."""
        return 2 - 2 * self.similarity / self.images

    def margin(self) -> Tensor:
        """(Ct,) empirical margins of the images seen."""
        return empirical_margin(self.negative_sum, self.negative_count)
