"""Sums over images from which a matching and its margins are computed. No Detectron2."""

from __future__ import annotations

from typing import Callable

import torch
from torch import Tensor

from .margins import empirical_margin
from .matching import channel_similarity


class MatchingStatistics:
    """Running sums for one tap: channel similarities, images, and the teacher's negative values.

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
        self.negative_sum = zeros(num_teacher)
        self.negative_count = zeros(num_teacher)

    @torch.no_grad()
    def add(self, student: Tensor, teacher: Tensor, mask: Tensor | None) -> None:
        """Add a batch: (N, Cs, H, W), (N, Ct, H, W), mask (N, 1, H, W) or None."""
        self.similarity += channel_similarity(student, teacher, mask)
        self.images += len(student)
        negative = teacher < 0 if mask is None else (teacher < 0) & mask
        values = torch.where(negative, teacher, torch.zeros_like(teacher))
        self.negative_sum += values.sum((0, 2, 3), dtype=torch.float64)
        self.negative_count += negative.sum((0, 2, 3))

    def reduce(self, sum_over_ranks: Callable[[Tensor], None]) -> None:
        """Replace every sum by its sum over all processes; `sum_over_ranks` works in place."""
        for tensor in (self.similarity, self.images, self.negative_sum, self.negative_count):
            sum_over_ranks(tensor)

    def cost(self) -> Tensor:
        """(Cs, Ct) mean matching cost of the images seen, as :func:`matching.channel_cost`."""
        return 2 - 2 * self.similarity / self.images

    def margin(self) -> Tensor:
        """(Ct,) empirical margins of the images seen."""
        return empirical_margin(self.negative_sum, self.negative_count)
