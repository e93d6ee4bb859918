"""The sums that a matching is solved from: split over batches and processes, or all at once."""

from __future__ import annotations

import math
from typing import Optional

import pytest
import torch
from helpers.device import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det.maths.matching import channel_cost
from mgd_det.maths.matching_statistics import MatchingStatistics

PROPERTY = settings(max_examples=20, deadline=None, derandomize=True, database=None)
Batch = tuple[Tensor, Tensor, Optional[Tensor]]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def images(n: int, masked: bool) -> Batch:
    mask = None
    if masked:
        mask = torch.ones(n, 1, 4, 5, dtype=torch.bool, device=DEVICE)
        for i, image in enumerate(mask):
            image[:, :, 5 - i % 4 :] = False  # 0 to 3 columns of padding
    return normal(0, n, 3, 4, 5), normal(1, n, 7, 4, 5) + 0.5, mask


def part(batch: Batch, start: int, stop: int) -> Batch:
    student, teacher, mask = batch
    return student[start:stop], teacher[start:stop], None if mask is None else mask[start:stop]


def gathered(*batches: Batch) -> MatchingStatistics:
    statistics = MatchingStatistics(3, 7, DEVICE)
    for batch in batches:
        statistics.add(*batch)
    return statistics


def reduce_together(ranks: list[MatchingStatistics]) -> None:
    """What an all-reduce does: the tensors of all ranks meet in the order of the calls."""
    offered: list[list[Tensor]] = [[] for _ in ranks]
    for statistics, tensors in zip(ranks, offered):
        statistics.reduce(tensors.append)
    for tensors in zip(*offered):
        total = torch.stack(tensors).sum(0)
        for tensor in tensors:
            tensor.copy_(total)


def assert_same(got: MatchingStatistics, expected: MatchingStatistics) -> None:
    torch.testing.assert_close(got.cost(), expected.cost(), rtol=0, atol=1e-6)
    torch.testing.assert_close(got.margin(), expected.margin(), rtol=0, atol=1e-6)
    assert got.images.item() == expected.images.item()


class TestCost:
    def test_is_two_minus_twice_the_mean_cosine(self) -> None:
        statistics = MatchingStatistics(1, 2, DEVICE)
        student = torch.tensor([[3.0, 4.0], [0.0, 5.0]], device=DEVICE).reshape(2, 1, 1, 2)
        teacher = torch.tensor([[[4.0, 3.0], [0.0, -2.0]], [[0.0, 1.0], [1.0, 0.0]]], device=DEVICE)
        statistics.add(student, teacher.reshape(2, 2, 1, 2), None)
        # Cosines .96 and 1 with teacher 0, -.8 and 0 with teacher 1: 2 - 2 * .98, 2 - 2 * (-.4).
        expected = torch.tensor([[0.04, 2.8]], dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(statistics.cost(), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("masked", [False, True])
    def test_is_that_of_all_images_at_once(self, masked: bool) -> None:
        batch = images(5, masked)
        statistics = gathered(part(batch, 0, 2), part(batch, 2, 5))
        expected = channel_cost(*batch).double()
        torch.testing.assert_close(statistics.cost(), expected, rtol=0, atol=1e-6)
        assert statistics.images.item() == 5

    def test_is_kept_in_double(self) -> None:
        assert gathered(images(2, masked=False)).cost().dtype == torch.float64


class TestMargin:
    def test_is_the_mean_of_the_negative_values_over_batches(self) -> None:
        statistics = MatchingStatistics(1, 3, DEVICE)
        first = torch.tensor([[-1.0, 2.0], [0.0, 3.0], [-4.0, -2.0]], device=DEVICE).reshape(1, 3, 1, 2)
        second = torch.tensor([[-3.0, -0.5], [1.0, 0.0], [-6.0, 8.0]], device=DEVICE).reshape(1, 3, 1, 2)
        for teacher in (first, second):
            statistics.add(torch.ones(1, 1, 1, 2, device=DEVICE), teacher, None)
        # (-1 - 3 - .5) / 3 = -1.5; never negative: 0; (-4 - 2 - 6) / 3 = -4
        assert statistics.margin().tolist() == [-1.5, 0.0, -4.0]

    def test_leaves_masked_negative_values_out(self) -> None:
        statistics = MatchingStatistics(1, 2, DEVICE)
        teacher = torch.tensor([[-1.0, -100.0], [2.0, -100.0]], device=DEVICE).reshape(1, 2, 1, 2)
        mask = torch.tensor([True, False], device=DEVICE).reshape(1, 1, 1, 2)
        statistics.add(torch.ones(1, 1, 1, 2, device=DEVICE), teacher, mask)
        assert statistics.margin().tolist() == [-1.0, 0.0]
        assert statistics.negative_count.tolist() == [1.0, 0.0]

    def test_of_half_precision_is_summed_in_double(self) -> None:
        # 4096 times -100 is -409 600, but float16 ends at -65504 and counts exactly only to 2048.
        statistics = MatchingStatistics(1, 1, DEVICE)
        teacher = torch.full((1, 1, 64, 64), -100.0, dtype=torch.float16, device=DEVICE)
        statistics.add(torch.ones_like(teacher), teacher, None)
        assert statistics.margin().tolist() == [-100.0]
        assert statistics.negative_count.tolist() == [4096.0]


class TestMask:
    @PROPERTY
    @given(st.floats(-(2.0**60), 2.0**60, width=32), st.booleans())
    def test_keeps_the_padding_out_of_everything(self, content: float, negate: bool) -> None:
        student, teacher, mask = images(4, masked=True)
        value = torch.tensor(content, device=DEVICE)
        other = (
            student.where(mask, -value if negate else value),
            teacher.where(mask, value),
            mask,
        )
        got, expected = gathered(other), gathered((student, teacher, mask))
        assert torch.equal(got.cost(), expected.cost())
        assert torch.equal(got.margin(), expected.margin())

    @pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
    def test_keeps_infinities_and_nan_in_the_padding_out(self, content: float) -> None:
        student, teacher, mask = images(4, masked=True)
        value = torch.tensor(content, device=DEVICE)
        got = gathered((student.where(mask, value), teacher.where(mask, value), mask))
        expected = gathered((student, teacher, mask))
        assert torch.equal(got.margin(), expected.margin())
        assert torch.equal(got.cost(), expected.cost())


class TestReduce:
    @pytest.mark.parametrize("masked", [False, True])
    def test_makes_the_sums_of_two_halves_those_of_the_whole(self, masked: bool) -> None:
        batch = images(6, masked)
        ranks = [gathered(part(batch, 0, 3)), gathered(part(batch, 3, 6))]
        reduce_together(ranks)
        for statistics in ranks:
            assert_same(statistics, gathered(batch))

    @PROPERTY
    @given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.booleans(), st.integers(1, 3))
    def test_does_not_depend_on_how_the_images_are_split(
        self, sizes: list[int], masked: bool, world_size: int
    ) -> None:
        batch, start, batches = images(sum(sizes), masked), 0, []
        for size in sizes:
            batches.append(part(batch, start, start + size))
            start += size
        ranks = [gathered(*batches[rank::world_size]) for rank in range(world_size)]
        reduce_together(ranks)
        assert_same(ranks[0], gathered(batch))

    def test_gives_every_rank_the_very_same_matching_cost(self) -> None:
        batch = images(5, masked=True)
        ranks = [gathered(part(batch, 0, 3)), gathered(part(batch, 3, 5))]
        reduce_together(ranks)
        assert torch.equal(ranks[0].cost(), ranks[1].cost())
        assert torch.equal(ranks[0].margin(), ranks[1].margin())

    def test_counts_a_rank_without_images_as_nothing(self) -> None:
        batch = images(3, masked=False)
        ranks = [gathered(batch), gathered()]
        reduce_together(ranks)
        assert_same(ranks[1], gathered(batch))


class TestAddScaled:
    def test_adds_the_earlier_sums_in_proportion(self) -> None:
        now, earlier = gathered(images(3, masked=True)), gathered(images(2, masked=False))
        expected = {name: tensor + 0.25 * earlier.sums[name] for name, tensor in now.sums.items()}
        now.add_scaled(0.25, earlier)
        for name, tensor in now.sums.items():
            torch.testing.assert_close(tensor, expected[name])
        assert now.images.item() == 3.5
        assert earlier.images.item() == 2

    def test_stays_where_the_new_ones_are(self) -> None:
        """The meta device stands for a GPU: it is another one, and there everywhere."""
        now = MatchingStatistics(3, 7, torch.device("meta"))
        now.add_scaled(0.25, gathered(images(2, masked=False)))
        assert {tensor.device.type for tensor in now.sums.values()} == {"meta"}


class TestFeatures:
    def test_are_left_as_they_are(self) -> None:
        student, teacher, mask = images(2, masked=True)
        before = [tensor.clone() for tensor in (student, teacher, mask)]
        gathered((student, teacher, mask))
        assert all(map(torch.equal, (student, teacher, mask), before))

    @pytest.mark.parametrize("side", ["student", "teacher"])
    def test_that_need_a_gradient_leave_no_graph_behind(self, side: str) -> None:
        student, teacher, mask = images(2, masked=True)
        {"student": student, "teacher": teacher}[side].requires_grad_()
        statistics = gathered((student, teacher, mask))
        kept: list[Tensor] = []
        statistics.reduce(kept.append)
        assert [tensor.requires_grad for tensor in kept] == [False] * len(kept)
