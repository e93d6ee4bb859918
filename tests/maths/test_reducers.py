"""Reducers: a group of teacher channels becomes one target channel, and its margins one margin."""

from __future__ import annotations

from typing import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det import reducers

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)
POOLING = [reducers.absolute_max, reducers.simple_max, reducers.random_drop]


def channels(*rows: list[float]) -> Tensor:
    """One image of H 1: every row is a channel."""
    return torch.tensor(rows).reshape(1, len(rows), 1, -1)


def rows_of(features: Tensor) -> list[list[float]]:
    assert features.shape[0] == features.shape[2] == 1
    return features[0, :, 0].tolist()


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def teachers_and_groups(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Small integers, so with ties, as (N, Ct, H, W) features; groups of 1 to 4, padded with -1."""
    n, h, w = draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)))
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    ct = sum(sizes) + draw(st.integers(0, 2))  # some may stay unused
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    order = rng.permutation(ct).tolist()
    width = max(sizes) + draw(st.integers(0, 1))
    groups = [sorted(order.pop() for _ in range(size)) + [-1] * (width - size) for size in sizes]
    teacher = torch.from_numpy(rng.integers(-3, 4, (n, ct, h, w)).astype(np.float32))
    return teacher, torch.tensor(groups)


def members_at(teacher: Tensor, groups: Tensor) -> list[tuple[tuple[int, ...], list[float]]]:
    """Every position of the target with the values of its group's members there, in their order."""
    n, _, h, w = teacher.shape
    return [
        ((i, c, y, x), [teacher[i, j, y, x].item() for j in row if j >= 0])
        for c, row in enumerate(groups.tolist())
        for i in range(n)
        for y in range(h)
        for x in range(w)
    ]


class TestAbsoluteMax:
    def test_keeps_the_sign_of_the_member_with_the_largest_magnitude(self) -> None:
        teacher = channels([1.0, 5.0, -1.0], [-3.0, 2.0, -2.0], [2.0, -4.0, 0.0])
        # Magnitudes 1 3 2, 5 2 4, 1 2 0: the second, first and second member win.
        target = reducers.absolute_max(teacher, torch.tensor([[0, 1, 2]]))
        assert rows_of(target) == [[-3.0, 5.0, -2.0]]

    def test_pools_each_group_for_itself(self) -> None:
        teacher = channels([1.0], [-2.0], [-3.0], [4.0])
        target = reducers.absolute_max(teacher, torch.tensor([[0, 2], [1, 3]]))
        assert rows_of(target) == [[-3.0], [4.0]]

    def test_of_equal_magnitudes_takes_the_first(self) -> None:
        teacher = channels([2.0, -2.0], [-2.0, 2.0])
        assert rows_of(reducers.absolute_max(teacher, torch.tensor([[0, 1]]))) == [[2.0, -2.0]]
        assert rows_of(reducers.absolute_max(teacher, torch.tensor([[1, 0]]))) == [[-2.0, 2.0]]

    def test_ignores_the_padding_of_a_short_group(self) -> None:
        # Teacher 3, which an index of -1 would reach, is the largest of all.
        teacher = channels([1.0], [-2.0], [3.0], [-9.0])
        target = reducers.absolute_max(teacher, torch.tensor([[0, 1], [2, -1]]))
        assert rows_of(target) == [[-2.0], [3.0]]

    @PROPERTY
    @given(teachers_and_groups())
    def test_is_the_first_of_the_largest_magnitudes_anywhere(self, case: tuple[Tensor, Tensor]) -> None:
        target = reducers.absolute_max(*case)
        for position, values in members_at(*case):
            assert target[position].item() == max(values, key=abs)  # max returns the first

    @PROPERTY
    @given(teachers_and_groups())
    def test_of_a_negated_teacher_is_negated(self, case: tuple[Tensor, Tensor]) -> None:
        teacher, groups = case
        expected = -reducers.absolute_max(teacher, groups)
        assert torch.equal(reducers.absolute_max(-teacher, groups), expected)


class TestSimpleMax:
    def test_is_the_largest_value_of_the_group(self) -> None:
        teacher = channels([1.0, -5.0, -1.0], [-3.0, 2.0, -2.0])
        target = reducers.simple_max(teacher, torch.tensor([[0, 1]]))
        assert rows_of(target) == [[1.0, 2.0, -1.0]]

    def test_ignores_the_padding_of_a_short_group(self) -> None:
        teacher = channels([1.0], [-2.0], [-3.0], [9.0])
        target = reducers.simple_max(teacher, torch.tensor([[0, 1], [2, -1]]))
        assert rows_of(target) == [[1.0], [-3.0]]

    @PROPERTY
    @given(teachers_and_groups())
    def test_is_the_largest_anywhere(self, case: tuple[Tensor, Tensor]) -> None:
        target = reducers.simple_max(*case)
        for position, values in members_at(*case):
            assert target[position].item() == max(values)


class TestSparse:
    def test_is_the_matched_channel(self) -> None:
        teacher = channels([1.0, 2.0], [3.0, -4.0], [-5.0, 6.0])
        target = reducers.sparse(teacher, torch.tensor([[2], [0]]))
        assert rows_of(target) == [[-5.0, 6.0], [1.0, 2.0]]

    @pytest.mark.parametrize("second", [1, -1])
    def test_refuses_groups_with_room_for_more_than_one_channel(self, second: int) -> None:
        with pytest.raises(ValueError, match="groups of one channel, got 2"):
            reducers.sparse(channels([1.0], [2.0]), torch.tensor([[0, second]]))


class TestRandomDrop:
    def test_draws_for_every_image_channel_and_position(self) -> None:
        teacher = torch.arange(4.0)[:, None, None].repeat(8, 1, 8, 8)  # channel j is j throughout
        target = reducers.random_drop(teacher, torch.tensor([[0, 1], [2, 3]]), generator(0))
        picks = target - torch.tensor([0.0, 2.0])[:, None, None]  # 0 first member, 1 second
        for one_draw in (picks.mean(0), picks.mean(1), picks.mean((2, 3))):
            # Were there one draw along these dimensions, its mean would be 0 or 1 everywhere.
            assert ((one_draw > 0) & (one_draw < 1)).any()
        assert set(picks.unique().tolist()) == {0.0, 1.0}

    def test_picks_every_member_equally_often(self) -> None:
        teacher = torch.arange(5.0)[:, None, None].repeat(1, 1, 150, 200)
        groups = torch.tensor([[0, 1, 2], [3, 4, -1]])
        target = reducers.random_drop(teacher, groups, generator(0)).long()
        share = torch.stack([(target == j).float().mean((0, 2, 3)) for j in range(5)], 1)
        # 30 000 draws a group: 5 standard deviations of a share are 5 * sqrt(.25 / 30000) = .0144.
        expected = torch.tensor([[1 / 3, 1 / 3, 1 / 3, 0, 0], [0, 0, 0, 1 / 2, 1 / 2]])
        torch.testing.assert_close(share, expected, rtol=0, atol=0.015)

    @PROPERTY
    @given(teachers_and_groups(), st.integers(0, 99))
    def test_picks_members_only(self, case: tuple[Tensor, Tensor], seed: int) -> None:
        target = reducers.random_drop(*case, generator(seed))
        for position, values in members_at(*case):
            assert target[position].item() in values

    def test_of_groups_of_one_is_the_matched_channel(self) -> None:
        teacher = channels([1.0, 2.0], [3.0, -4.0], [-5.0, 6.0])
        target = reducers.random_drop(teacher, torch.tensor([[2, -1], [0, -1]]), generator(0))
        assert rows_of(target) == [[-5.0, 6.0], [1.0, 2.0]]

    def test_repeats_itself_from_a_generator_of_the_same_seed(self) -> None:
        teacher = torch.randn(2, 4, 8, 8, generator=generator(0))
        groups = torch.tensor([[0, 1], [2, 3]])
        first = reducers.random_drop(teacher, groups, generator(1))
        assert torch.equal(reducers.random_drop(teacher, groups, generator(1)), first)
        assert not torch.equal(reducers.random_drop(teacher, groups, generator(2)), first)

    def test_draws_anew_from_a_generator_that_has_moved_on(self) -> None:
        teacher = torch.randn(2, 4, 8, 8, generator=generator(0))
        groups, source = torch.tensor([[0, 1], [2, 3]]), generator(1)
        first = reducers.random_drop(teacher, groups, source)
        assert not torch.equal(reducers.random_drop(teacher, groups, source), first)

    def test_and_its_margin_leave_the_global_stream_alone_when_given_a_generator(self) -> None:
        before = torch.random.get_rng_state()
        teacher, groups = torch.randn(1, 4, 2, 2, generator=generator(0)), torch.tensor([[0, 1]])
        reducers.random_drop(teacher, groups, generator(0))
        reducers.random_margin(torch.zeros(4), groups, generator(0))
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_and_its_margin_take_the_global_stream_otherwise(self) -> None:
        teacher, groups = torch.randn(1, 8, 8, 8, generator=generator(0)), torch.arange(8)[None]
        margin = torch.arange(8.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            target = reducers.random_drop(teacher, groups)
            picked = [reducers.random_margin(margin, groups) for _ in range(8)]
        source = generator(3)
        assert torch.equal(target, reducers.random_drop(teacher, groups, source))
        assert picked == [reducers.random_margin(margin, groups, source) for _ in range(8)]


class TestEveryReducer:
    @pytest.mark.parametrize("reduce", POOLING)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_keeps_the_dtype(self, reduce: Callable[..., Tensor], dtype: torch.dtype) -> None:
        teacher = torch.randn(1, 4, 2, 2, generator=generator(0)).to(dtype)
        assert reduce(teacher, torch.tensor([[0, 2], [1, 3]])).dtype == dtype

    @pytest.mark.parametrize("reduce", POOLING)
    def test_does_not_write_to_the_teacher(self, reduce: Callable[..., Tensor]) -> None:
        teacher = torch.randn(1, 4, 2, 2, generator=generator(0))
        before = teacher.clone()
        reduce(teacher, torch.tensor([[0, 1], [2, 3]]))
        assert torch.equal(teacher, before)

    @pytest.mark.parametrize("reduce", POOLING)
    def test_lets_several_students_share_a_teacher(self, reduce: Callable[..., Tensor]) -> None:
        teacher = channels([1.0, -2.0], [3.0, 4.0])
        target = reduce(teacher, torch.tensor([[0], [1], [0]]))
        assert rows_of(target) == [[1.0, -2.0], [3.0, 4.0], [1.0, -2.0]]


class TestMargins:
    MARGIN = torch.tensor([-1.0, -2.0, -6.0, -4.0])

    def test_of_absolute_max_is_the_mean_over_the_group(self) -> None:
        # (-1 - 6 - 2) / 3 = -3, and -4 alone.
        margin = reducers.mean_margin(self.MARGIN, torch.tensor([[0, 1, 2], [3, -1, -1]]))
        assert margin.tolist() == [-3.0, -4.0]

    def test_of_simple_max_is_the_largest_of_the_group(self) -> None:
        # An index of -1 would reach the -4, which is above the -6.
        margin = reducers.max_margin(self.MARGIN, torch.tensor([[1, 2], [2, -1]]))
        assert margin.tolist() == [-2.0, -6.0]

    def test_of_sparse_is_that_of_the_matched_channel(self) -> None:
        margin = reducers.matched_margin(self.MARGIN, torch.tensor([[2], [0]]))
        assert margin.tolist() == [-6.0, -1.0]

    def test_of_random_drop_is_that_of_a_member_each_equally_often(self) -> None:
        groups, source = torch.tensor([[0, 1, 2], [3, 1, -1]]), generator(0)
        draws = torch.stack([reducers.random_margin(self.MARGIN, groups, source) for _ in range(900)])
        shares = [(draws == value).float().mean(0).tolist() for value in self.MARGIN.tolist()]
        # Five standard deviations of a share: 5 * sqrt(.25 / 900) = .083.
        expected = [[1 / 3, 0], [1 / 3, 1 / 2], [1 / 3, 0], [0, 1 / 2]]
        torch.testing.assert_close(torch.tensor(shares), torch.tensor(expected), rtol=0, atol=0.085)


class TestFindReducer:
    @pytest.mark.parametrize(
        ("name", "alias", "features", "margin", "one_to_one", "random"),
        [
            ("absolute_max", "amp", reducers.absolute_max, reducers.mean_margin, False, False),
            ("sparse", "sm", reducers.sparse, reducers.matched_margin, True, False),
            ("random_drop", "rd", reducers.random_drop, reducers.random_margin, False, True),
            ("simple_max", "sp", reducers.simple_max, reducers.max_margin, False, False),
        ],
    )
    def test_knows_each_by_name_and_alias(
        self,
        name: str,
        alias: str,
        features: Callable[..., Tensor],
        margin: Callable[..., Tensor],
        one_to_one: bool,
        random: bool,
    ) -> None:
        expected = (features, margin, one_to_one, random)
        assert reducers.find_reducer(name) == expected
        assert reducers.find_reducer(alias) == expected

    @pytest.mark.parametrize("name", ["", "max", "AMP", "absolute-max"])
    def test_of_an_unknown_name_is_none(self, name: str) -> None:
        assert reducers.find_reducer(name) is None
