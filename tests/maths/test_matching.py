"""Matching: the cost of pairing channels, the optimal assignment, and what is reported about it."""

from __future__ import annotations

import itertools
import math
from typing import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from mgd_det import matching

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)

SHAPES = [
    *[(1, 1), (2, 2), (3, 3)],  # equal
    *[(1, 4), (2, 4), (2, 6), (3, 6)],  # Cs divides Ct
    *[(2, 3), (2, 5), (3, 5), (3, 7), (3, 8), (4, 7)],  # it does not
    *[(2, 1), (3, 2), (4, 2), (4, 3), (5, 2), (5, 3)],  # Cs > Ct
]
NOT_DIVIDING = [shape for shape in SHAPES if shape[0] < shape[1] and shape[1] % shape[0]]


def features(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def channels(*rows: list[float]) -> Tensor:
    """One image of H 1: every row is a channel."""
    return torch.tensor(rows).reshape(1, len(rows), 1, -1)


def padding_mask(n: int, h: int, w: int, sizes: list[tuple[int, int]]) -> Tensor:
    """(N, H, W), True in the top left corner of the given size."""
    mask = torch.zeros(n, h, w, dtype=torch.bool)
    for row, (height, width) in zip(mask, sizes):
        row[:height, :width] = True
    return mask


def total(cost: np.ndarray, groups: Tensor) -> float:
    return sum(cost[i, j] for i, row in enumerate(groups.tolist()) for j in row if j >= 0)


def best_total(cost: np.ndarray, sizes: list[int], uses: int) -> float:
    """Least cost of giving student i `sizes[i]` teachers, each used `uses` times at most."""

    def best(i: int, left: tuple[int, ...]) -> float:
        if i == len(cost):
            return 0.0
        results = [math.inf]
        free = [j for j, count in enumerate(left) if count]
        for group in itertools.combinations(free, sizes[i]):
            rest = tuple(count - (j in group) for j, count in enumerate(left))
            results.append(cost[i, list(group)].sum() + best(i + 1, rest))
        return min(results)

    return best(0, (uses,) * cost.shape[1])


def linear_program(cost: np.ndarray, rows: tuple[int, int], columns: tuple[int, int]) -> float:
    """Least cost of pairs, with bounds on how many each row and each column takes part in.

    The constraints are totally unimodular, so the optimum over fractions is that over whole pairs.
    """
    cs, ct = cost.shape
    per_row = np.kron(np.eye(cs), np.ones(ct))
    per_column = np.kron(np.ones(cs), np.eye(ct))
    at_most = np.concatenate([np.full(cs, rows[1]), np.full(ct, columns[1])])
    at_least = np.concatenate([np.full(cs, rows[0]), np.full(ct, columns[0])])
    matrix = np.concatenate([per_row, per_column])
    solution = linprog(
        cost.ravel(),
        A_ub=np.concatenate([matrix, -matrix]),
        b_ub=np.concatenate([at_most, -at_least]),
        bounds=(0, 1),
        method="highs",
    )
    assert solution.status == 0
    return solution.fun


@st.composite
def cost_matrices(draw: st.DrawFn, most: int = 12, multiple: int = 4) -> np.ndarray:
    """Costs in [0, 4], from many ties to none; multiples of a power of 2: their sums are exact."""
    cs = draw(st.integers(1, most))
    ct = draw(st.integers(1, multiple * most))
    levels = draw(st.sampled_from([1, 4, 32, 2**20]))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return rng.integers(0, levels + 1, (cs, ct)) * (4 / levels)


class TestChannelCost:
    def test_is_two_minus_twice_the_cosine(self) -> None:
        student = channels([3.0, 4.0], [1.0, 0.0])
        teacher = channels([4.0, 3.0], [0.0, -2.0])
        # Of unit length: students (.6, .8), (1, 0); teachers (.8, .6), (0, -1).
        # Cosines: .48 + .48 = .96, -.8; .8, 0.
        expected = torch.tensor([[0.08, 3.6], [0.4, 2.0]])
        cost = matching.channel_cost(student, teacher)
        torch.testing.assert_close(cost, expected, rtol=0, atol=1e-6)

    def test_is_not_mean_centred(self) -> None:
        # (1 * 3 + 3 * 1) / 10 = .6; with the mean 2 taken off they would be opposite, at cost 4.
        cost = matching.channel_cost(channels([1.0, 3.0]), channels([3.0, 1.0]))
        torch.testing.assert_close(cost, torch.tensor([[0.8]]), rtol=0, atol=1e-6)

    def test_is_averaged_over_images_each_of_its_own_length(self) -> None:
        student = torch.tensor([[3.0, 4.0], [0.0, 100.0]]).reshape(2, 1, 1, 2)
        teacher = torch.tensor([[4.0, 3.0], [0.0, 0.5]]).reshape(2, 1, 1, 2)
        # 2 - 2 * .96 = .08 and 0: their mean is .04, however large the second image's values are.
        cost = matching.channel_cost(student, teacher)
        torch.testing.assert_close(cost, torch.tensor([[0.04]]), rtol=0, atol=1e-6)

    def test_spans_zero_for_parallel_to_four_for_opposite(self) -> None:
        cost = matching.channel_cost(channels([1.0, 2.0]), channels([2.0, 4.0], [-3.0, -6.0]))
        torch.testing.assert_close(cost, torch.tensor([[0.0, 4.0]]), rtol=0, atol=1e-6)

    def test_takes_the_whole_map_as_one_vector(self) -> None:
        student = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).reshape(1, 1, 2, 2)
        teacher = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
        # (.5, .5, .5, .5) . (1, 0, 0, 0) = .5
        cost = matching.channel_cost(student, teacher)
        torch.testing.assert_close(cost, torch.tensor([[1.0]]), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_of_a_zero_channel_is_two(self, dtype: torch.dtype) -> None:
        student = channels([0.0, 0.0], [1.0, 0.0]).to(dtype)
        teacher = channels([0.0, 0.0], [1.0, 0.0]).to(dtype)
        cost = matching.channel_cost(student, teacher)
        torch.testing.assert_close(cost, torch.tensor([[2.0, 2.0], [2.0, 0.0]]), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_half_precision_is_that_of_the_same_values_in_float32(self, dtype: torch.dtype) -> None:
        student, teacher = features(0, 2, 3, 4, 5).to(dtype), features(1, 2, 6, 4, 5).to(dtype)
        cost = matching.channel_cost(student, teacher)
        assert cost.dtype == torch.float32
        assert torch.equal(cost, matching.channel_cost(student.float(), teacher.float()))

    def test_stays_in_double_for_double_features(self) -> None:
        student, teacher = features(0, 2, 3, 4, 5).double(), features(1, 2, 6, 4, 5).double()
        s = student.flatten(2) / student.flatten(2).square().sum(2, keepdim=True).sqrt()
        t = teacher.flatten(2) / teacher.flatten(2).square().sum(2, keepdim=True).sqrt()
        expected = 2 - 2 * (s @ t.transpose(1, 2)).mean(0)
        cost = matching.channel_cost(student, teacher)
        torch.testing.assert_close(cost, expected, rtol=0, atol=1e-14)

    def test_accepts_a_half_student_beside_a_float_teacher(self) -> None:
        cost = matching.channel_cost(channels([3.0, 4.0]).half(), channels([4.0, 3.0]))
        assert cost.dtype == torch.float32
        torch.testing.assert_close(cost, torch.tensor([[0.08]]), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_large_half_precision_maps_does_not_overflow(self, dtype: torch.dtype) -> None:
        # Squares of 4e8 to 3.6e9 at each of 4096 positions; float16 ends at 65504.
        student = (features(0, 1, 2, 64, 64).sigmoid() * 4e4 + 2e4).to(dtype)
        teacher = (features(1, 1, 3, 64, 64).sigmoid() * 4e4 - 6e4).to(dtype)
        cost = matching.channel_cost(student, teacher)
        expected = matching.channel_cost(student.double(), teacher.double())
        torch.testing.assert_close(cost, expected.float(), rtol=0, atol=1e-5)
        assert (cost > 3).all()  # all of one sign against all of the other

    @pytest.mark.parametrize("scale", [1e-6, 1e-3, 1e6])
    def test_does_not_depend_on_the_scale_of_a_channel(self, scale: float) -> None:
        student, teacher = features(0, 2, 3, 4, 5), features(1, 2, 6, 4, 5)
        expected = matching.channel_cost(student, teacher)
        scaled = student * torch.tensor([1.0, scale, 1.0])[:, None, None]
        cost = matching.channel_cost(scaled, teacher)
        torch.testing.assert_close(cost, expected, rtol=0, atol=1e-6)

    def test_follows_the_order_of_the_channels(self) -> None:
        student, teacher = features(0, 2, 3, 4, 5), features(1, 2, 6, 4, 5)
        cost = matching.channel_cost(student, teacher)
        shuffled = matching.channel_cost(student[:, [2, 0, 1]], teacher[:, [5, 3, 1, 0, 2, 4]])
        expected = cost[[2, 0, 1]][:, [5, 3, 1, 0, 2, 4]]
        torch.testing.assert_close(shuffled, expected, rtol=0, atol=1e-6)

    def test_does_not_depend_on_the_memory_layout(self) -> None:
        student, teacher = features(0, 2, 6, 4, 5), features(1, 2, 6, 5, 4)
        cost = matching.channel_cost(student[:, ::2], teacher.transpose(2, 3))
        expected = matching.channel_cost(student[:, ::2].contiguous(), teacher.transpose(2, 3).contiguous())
        torch.testing.assert_close(cost, expected, rtol=0, atol=1e-6)

    def test_is_unaffected_by_an_enclosing_autocast(self) -> None:
        student, teacher = features(0, 2, 3, 8, 8), features(1, 2, 6, 8, 8)
        expected = matching.channel_cost(student, teacher)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cost = matching.channel_cost(student, teacher)
        assert cost.dtype == torch.float32
        assert torch.equal(cost, expected)

    def test_carries_no_gradient(self) -> None:
        student = features(0, 1, 2, 3, 3).requires_grad_()
        teacher = features(1, 1, 4, 3, 3).requires_grad_()
        assert not matching.channel_cost(student, teacher).requires_grad

    @pytest.mark.parametrize(
        "teacher_shape", [(1, 4, 3, 5), (2, 4, 5, 3), (2, 4, 3, 1)], ids=["images", "H", "W"]
    )
    def test_refuses_features_of_different_size(self, teacher_shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"agree in N, H, W.*\(2, 2, 3, 5\)"):
            matching.channel_cost(torch.ones(2, 2, 3, 5), torch.ones(teacher_shape))


class TestMaskedChannelCost:
    def test_leaves_padded_positions_out(self) -> None:
        student = channels([3.0, 4.0, 7.0])
        teacher = channels([4.0, 3.0, -9.0])
        mask = torch.tensor([[[True, True, False]]])
        cost = matching.channel_cost(student, teacher, mask)
        torch.testing.assert_close(cost, torch.tensor([[0.08]]), rtol=0, atol=1e-6)

    def test_takes_the_mask_with_and_without_a_channel_dimension(self) -> None:
        student, teacher = features(0, 2, 3, 4, 5), features(1, 2, 6, 4, 5)
        mask = padding_mask(2, 4, 5, [(4, 3), (2, 5)])
        cost = matching.channel_cost(student, teacher, mask)
        assert torch.equal(cost, matching.channel_cost(student, teacher, mask[:, None]))
        assert not torch.equal(cost, matching.channel_cost(student, teacher))

    def test_that_is_true_throughout_changes_nothing(self) -> None:
        student, teacher = features(0, 2, 3, 4, 5), features(1, 2, 6, 4, 5)
        cost = matching.channel_cost(student, teacher, torch.ones(2, 4, 5, dtype=torch.bool))
        assert torch.equal(cost, matching.channel_cost(student, teacher))

    @PROPERTY
    @given(
        sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3),
        content=st.floats(-(2.0**60), 2.0**60, width=32),
        seed=st.integers(0, 99),
    )
    def test_equals_the_mean_cost_of_the_cropped_images(
        self, sizes: list[tuple[int, int]], content: float, seed: int
    ) -> None:
        n = len(sizes)
        mask = padding_mask(n, 4, 5, sizes)
        student = features(seed, n, 3, 4, 5).where(mask[:, None], torch.tensor(content))
        teacher = features(seed + 100, n, 7, 4, 5).where(mask[:, None], torch.tensor(-content))
        cropped = [
            matching.channel_cost(s[None, :, :h, :w], t[None, :, :h, :w])
            for s, t, (h, w) in zip(student, teacher, sizes)
        ]
        cost = matching.channel_cost(student, teacher, mask)
        torch.testing.assert_close(cost, torch.stack(cropped).mean(0), rtol=0, atol=2e-6)

    @pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
    def test_keeps_infinities_and_nan_in_the_padding_out(self, content: float) -> None:
        student, teacher = features(0, 1, 2, 4, 5), features(1, 1, 4, 4, 5)
        mask = padding_mask(1, 4, 5, [(3, 4)])
        expected = matching.channel_cost(student, teacher, mask)
        student[:, :, 3], teacher[:, :, :, 4] = content, content
        assert torch.equal(matching.channel_cost(student, teacher, mask), expected)

    def test_of_an_image_without_unpadded_position_is_two(self) -> None:
        mask = torch.zeros(1, 4, 5, dtype=torch.bool)
        cost = matching.channel_cost(features(0, 1, 2, 4, 5), features(1, 1, 3, 4, 5), mask)
        assert torch.equal(cost, torch.full((2, 3), 2.0))


class TestAssignGroups:
    def test_finds_the_optimum_that_a_greedy_choice_misses(self) -> None:
        # The cheapest pair is (0, 0) at 1, but it leaves (1, 1) at 9: 10 against 2 + 2.
        cost = torch.tensor([[1.0, 2.0], [2.0, 9.0]])
        assert matching.assign_groups(cost).tolist() == [[1], [0]]

    def test_gives_every_student_two_of_four_teachers(self) -> None:
        # Teachers 3 (1 against 4) and 1 (2 against 3) are cheaper at student 0, 2 at student 1
        # (1 against 2), and 0 makes no difference: groups of two are cheapest at 1 + 2 + 1 + 1 = 5.
        cost = torch.tensor([[1.0, 2.0, 2.0, 1.0], [1.0, 3.0, 1.0, 4.0]])
        assert matching.assign_groups(cost).tolist() == [[1, 3], [0, 2]]

    def test_leaves_the_dearest_teachers_out_where_they_do_not_divide(self) -> None:
        # G = 5 // 2 = 2; teacher 1 costs 4 at either student. The first four by index, the
        # reference's choice, would have to take it: (2, 3) and (0, 1) at 1 + 2 + 1 + 4 = 8, not 5.
        cost = torch.tensor([[3.0, 4.0, 1.0, 2.0, 3.0], [1.0, 4.0, 3.0, 3.0, 1.0]])
        assert matching.assign_groups(cost).tolist() == [[2, 3], [0, 4]]

    def test_shares_teachers_evenly_among_more_students(self) -> None:
        # ceil(3 / 2) = 2 students may have teacher 0; student 1 loses least by moving to teacher 1.
        cost = torch.tensor([[0.0, 3.0], [0.0, 1.0], [0.0, 2.0]])
        assert matching.assign_groups(cost).tolist() == [[0], [1], [0]]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_returns_a_long_tensor_for_any_float_cost(self, dtype: torch.dtype) -> None:
        cost = torch.tensor([[1.0, 2.0], [2.0, 9.0]], dtype=dtype, requires_grad=True)
        groups = matching.assign_groups(cost)
        assert groups.dtype == torch.int64
        assert groups.tolist() == [[1], [0]]

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_is_as_cheap_as_the_best_of_all_assignments(self, shape: tuple[int, int], seed: int) -> None:
        cs, ct = shape
        cost = np.random.default_rng(seed).integers(0, 33, shape) / 8  # exact sums
        groups = matching.assign_groups(torch.from_numpy(cost))
        size = max(ct // cs, 1)
        assert groups.shape == (cs, size)
        assert total(cost, groups) == best_total(cost, [size] * cs, uses=-(-cs // ct))

    @PROPERTY
    @given(cost_matrices())
    def test_is_as_cheap_as_the_linear_program_says(self, cost: np.ndarray) -> None:
        cs, ct = cost.shape
        size, uses = max(ct // cs, 1), -(-cs // ct)
        groups = matching.assign_groups(torch.from_numpy(cost))
        least = linear_program(cost, rows=(size, size), columns=(0, uses))
        assert total(cost, groups) == pytest.approx(least, rel=1e-9, abs=1e-9)

    @PROPERTY
    @given(cost_matrices())
    def test_uses_no_teacher_too_often(self, cost: np.ndarray) -> None:
        cs, ct = cost.shape
        groups = matching.assign_groups(torch.from_numpy(cost))
        assert groups.shape == (cs, max(ct // cs, 1))
        assert 0 <= groups.min() <= groups.max() < ct
        uses = torch.bincount(groups.flatten(), minlength=ct)
        assert uses.max() <= (1 if cs <= ct else -(-cs // ct))

    @PROPERTY
    @given(cost_matrices())
    def test_lists_the_teachers_of_a_group_once_and_in_ascending_order(self, cost: np.ndarray) -> None:
        groups = matching.assign_groups(torch.from_numpy(cost))
        assert (groups.diff(dim=1) > 0).all()

    @PROPERTY
    @given(cost_matrices(most=6), st.integers(-8, 8))
    def test_keeps_its_optimum_when_every_cost_is_shifted_below_zero_or_above(
        self, cost: np.ndarray, shift: int
    ) -> None:
        groups = matching.assign_groups(torch.from_numpy(cost + shift))
        assert total(cost, groups) == total(cost, matching.assign_groups(torch.from_numpy(cost)))

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("solve", [matching.assign_groups, matching.assign_one_to_one])
    def test_refuses_a_cost_that_is_not_finite(self, solve: Callable[[Tensor], Tensor], value: float) -> None:
        with pytest.raises(ValueError, match="cost contains NaN or infinity"):
            solve(torch.tensor([[1.0, 2.0], [value, 3.0]]))

    @pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (4,), (1, 2, 3)], ids=str)
    @pytest.mark.parametrize("solve", [matching.assign_groups, matching.assign_one_to_one])
    def test_refuses_an_empty_cost_or_one_that_is_no_matrix(
        self, solve: Callable[[Tensor], Tensor], shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match="non-empty"):
            solve(torch.zeros(shape))


class TestSpread:
    def test_gives_the_teacher_left_over_to_the_student_it_fits(self) -> None:
        # Without it teacher 2 is left out: groups (0), (1). It is cheaper at student 1 than at 0.
        cost = torch.tensor([[1.0, 4.0, 3.0], [4.0, 1.0, 2.0]])
        assert matching.assign_groups(cost, spread=True).tolist() == [[0, -1], [1, 2]]

    @pytest.mark.parametrize("shape", NOT_DIVIDING, ids=str)
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_is_as_cheap_as_the_best_of_all_ways_to_use_every_teacher(
        self, shape: tuple[int, int], seed: int
    ) -> None:
        cs, ct = shape
        cost = np.random.default_rng(seed).integers(0, 33, shape) / 8
        groups = matching.assign_groups(torch.from_numpy(cost), spread=True)
        short = ct // cs
        best = min(
            best_total(cost, [short + (i in longer) for i in range(cs)], uses=1)
            for longer in itertools.combinations(range(cs), ct % cs)
        )
        assert total(cost, groups) == best

    @PROPERTY
    @given(cost_matrices(), st.sampled_from([-6, 0]))
    def test_uses_every_teacher_once_in_groups_of_nearly_one_size(self, cost: np.ndarray, shift: int) -> None:
        cs, ct = cost.shape
        groups = matching.assign_groups(torch.from_numpy(cost + shift), spread=True)
        if cs > ct:
            assert torch.equal(groups, matching.assign_groups(torch.from_numpy(cost + shift)))
            return
        assert groups.shape == (cs, -(-ct // cs))
        assert sorted(groups[groups >= 0].tolist()) == list(range(ct))
        for row in groups.tolist():
            members = [j for j in row if j >= 0]
            assert len(members) in (ct // cs, -(-ct // cs))
            assert row == sorted(members) + [-1] * (len(row) - len(members))

    @PROPERTY
    @given(cost_matrices(most=8))
    def test_is_as_cheap_as_the_linear_program_says(self, cost: np.ndarray) -> None:
        cs, ct = cost.shape
        rows = (ct // cs, -(-ct // cs)) if cs <= ct else (1, 1)
        columns = (1, 1) if cs <= ct else (0, -(-cs // ct))
        groups = matching.assign_groups(torch.from_numpy(cost), spread=True)
        least = linear_program(cost, rows, columns)
        assert total(cost, groups) == pytest.approx(least, rel=1e-9, abs=1e-9)

    @pytest.mark.parametrize("shape", [(2, 4), (3, 3), (3, 2)], ids=str)
    def test_changes_nothing_where_no_teacher_is_left_over(self, shape: tuple[int, int]) -> None:
        cost = features(0, *shape)
        spread = matching.assign_groups(cost, spread=True)
        assert torch.equal(spread, matching.assign_groups(cost))


class TestAssignOneToOne:
    def test_takes_the_cheapest_teacher_of_each_student(self) -> None:
        # (0, 2) and (1, 0): 1 + 2 = 3; (0, 0) and (1, 2) would be 2 + 2 = 4.
        cost = torch.tensor([[2.0, 3.0, 1.0], [2.0, 3.0, 2.0]])
        groups = matching.assign_one_to_one(cost)
        assert groups.dtype == torch.int64
        assert groups.tolist() == [[2], [0]]

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_is_as_cheap_as_the_best_of_all_assignments(self, shape: tuple[int, int]) -> None:
        cs, ct = shape
        cost = np.random.default_rng(3).integers(0, 33, shape) / 8
        groups = matching.assign_one_to_one(torch.from_numpy(cost))
        assert groups.shape == (cs, 1)
        assert total(cost, groups) == best_total(cost, [1] * cs, uses=-(-cs // ct))

    def test_shares_teachers_evenly_among_more_students(self) -> None:
        groups = matching.assign_one_to_one(torch.zeros(5, 2))
        assert sorted(torch.bincount(groups.flatten(), minlength=2).tolist()) == [2, 3]


class TestReport:
    def test_group_members_repeats_the_first_member_for_the_padding(self) -> None:
        groups = torch.tensor([[4, 7, -1], [2, -1, -1], [0, 1, 3]])
        members = matching.group_members(groups)
        assert members.tolist() == [[4, 7, 4], [2, 2, 2], [0, 1, 3]]

    def test_assignment_cost_is_the_mean_of_the_matched_pairs(self) -> None:
        cost = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
        # (0, 0), (0, 2), (1, 1): (1 + 4 + 16) / 3 = 7
        assert matching.assignment_cost(cost, torch.tensor([[0, 2], [1, -1]])) == 7.0

    def test_assignment_cost_does_not_count_the_padding(self) -> None:
        cost = torch.tensor([[1.0, 2.0], [8.0, 16.0]])
        # (2 + 8) / 2 = 5, whether or not the groups have room for more.
        assert matching.assignment_cost(cost, torch.tensor([[1], [0]])) == 5.0
        assert matching.assignment_cost(cost, torch.tensor([[1, -1], [0, -1]])) == 5.0

    def test_changed_share_of_a_matching_with_itself_is_zero(self) -> None:
        groups = torch.tensor([[0, 2], [1, 3]])
        assert matching.changed_share(groups, groups, 4) == 0.0

    def test_changed_share_counts_the_teachers_that_moved(self) -> None:
        before = torch.tensor([[0, 2], [1, 3]])
        # 1 and 2 have changed places, 0 and 3 have stayed.
        assert matching.changed_share(before, torch.tensor([[0, 1], [2, 3]]), 4) == 0.5

    def test_changed_share_does_not_depend_on_the_order_in_a_group_or_on_padding(self) -> None:
        before = torch.tensor([[0, 2], [1, 3]])
        after = torch.tensor([[2, 0, -1], [3, 1, -1]])
        assert matching.changed_share(before, after, 5) == 0.0

    def test_changed_share_leaves_out_teachers_that_nobody_used(self) -> None:
        # Of 6 teachers 0 stayed, 1 went and 2 came: 2 of 3.
        share = matching.changed_share(torch.tensor([[0], [1]]), torch.tensor([[0], [2]]), 6)
        assert share == 2 / 3

    def test_changed_share_sees_a_teacher_that_gained_a_second_student(self) -> None:
        # Students outnumber teachers: teacher 0 has kept student 0 and gained 2; 1 has lost it.
        before = torch.tensor([[0], [1], [1]])
        after = torch.tensor([[0], [1], [0]])
        assert matching.changed_share(before, after, 2) == 1.0
