"""The partial L2 loss: its value, its gradient, what padding does to it, and the pooled form."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Callable

import numpy as np
import pytest
import torch
from helpers.device import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det.maths.losses import partial_l2, pooled_partial_l2
from mgd_det.maths.reducers import absolute_max

PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
REDUCTIONS = ["sum", "mean"]

# The same values in another order of memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "sliced": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "offset": lambda x: torch.nn.functional.pad(x, (1, 2, 1, 0))[:, :, 1:, 1:-2],
}

# Every kind of element, with margin -1: student, target, what it counts.
#   t' > 0, student above: (3 - 2)^2 = 1;             t' > 0, student below: (-1 - 2)^2 = 9;
#   t' < 0, student above: (1 + .5)^2 = 2.25;         t' < 0, student below: nothing.
#   Below the margin t' = -1: student above (.5 + 1)^2 = 2.25, below nothing.
STUDENT = [3.0, -1.0, 1.0, -2.0, 0.5, -3.0]
TARGET = [2.0, 2.0, -0.5, -0.5, -5.0, -5.0]
COUNTS = [1.0, 9.0, 2.25, 0.0, 2.25, 0.0]
GRADIENT = [2.0, -6.0, 3.0, 0.0, 3.0, 0.0]  # 2 (student - t') where it counts
MARGIN = torch.tensor([-1.0], device=DEVICE)


@pytest.fixture(scope="module", autouse=True)
def on_the_device() -> Iterator[None]:
    """Let factories such as torch.zeros put their tensors there."""
    with DEVICE:
        yield


def row(values: list[float]) -> Tensor:
    """One image of one channel and H 1."""
    return torch.tensor(values).reshape(1, 1, 1, -1)


def normal(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu").to(DEVICE)


def corner_mask(n: int, h: int, w: int, sizes: list[tuple[int, int]]) -> Tensor:
    """(N, H, W), True in the top left corner of the given size."""
    mask = torch.zeros(n, h, w, dtype=torch.bool)
    for image, (height, width) in zip(mask, sizes):
        image[:height, :width] = True
    return mask


def worked_out(student: Tensor, target: Tensor, margin: Tensor, mask: Tensor) -> tuple[float, int, Tensor]:
    """Sum, number of unpadded elements, and gradient of the sum, element by element."""
    total, count, gradient = 0.0, 0, torch.zeros(student.shape)
    for n, c, y, x in np.ndindex(*student.shape):
        if not mask[n, y, x]:
            continue
        count += 1
        s = student[n, c, y, x].item()
        t = max(target[n, c, y, x].item(), margin[c].item())
        if s > t or t > 0:
            total += (s - t) ** 2
            gradient[n, c, y, x] = 2 * (s - t)
    return total, count, gradient


class Case:
    """A student, a teacher of padded groups, margins and a mask, of small quarters: exact sums."""

    def __init__(self, seed: int, sizes: list[int], shape: tuple[int, int, int]) -> None:
        rng = np.random.default_rng(seed)
        n, h, w = shape

        def quarters(*dims: int) -> Tensor:
            return torch.from_numpy(rng.integers(-8, 9, dims).astype(np.float32) / 4).to(DEVICE)

        order = rng.permutation(sum(sizes)).tolist()
        rows = [sorted(order.pop() for _ in range(size)) for size in sizes]
        self.groups = torch.tensor([r + [-1] * (max(sizes) - len(r)) for r in rows])
        self.student = quarters(n, len(sizes), h, w)
        self.teacher = quarters(n, sum(sizes), h, w)
        self.margin = -quarters(len(sizes)).abs()
        heights, widths = rng.integers(1, h + 1, n), rng.integers(1, w + 1, n)
        self.mask = corner_mask(n, h, w, list(zip(heights.tolist(), widths.tolist())))


CASES = st.builds(
    Case,
    seed=st.integers(0, 9999),
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
)


class TestPartialL2:
    def test_counts_an_element_where_either_side_passes_the_relu(self) -> None:
        for student, target, counts in zip(STUDENT, TARGET, COUNTS):
            loss = partial_l2(row([student]), row([target]), MARGIN, "sum")
            assert loss.item() == counts, (student, target)

    def test_sums_over_all_elements(self) -> None:
        # 1 + 9 + 2.25 + 0 + 2.25 + 0 = 14.5
        assert partial_l2(row(STUDENT), row(TARGET), MARGIN, "sum").item() == 14.5

    def test_averages_over_all_elements_the_inactive_ones_included(self) -> None:
        # 14.5 over 6 elements, of which 4 are active.
        loss = partial_l2(row(STUDENT), row(TARGET), MARGIN, "mean")
        assert loss.item() == pytest.approx(14.5 / 6, rel=1e-6)

    @pytest.mark.parametrize(("reduction", "over"), [("sum", 1), ("mean", 6)])
    def test_pulls_the_student_by_twice_the_difference_where_active(self, reduction: str, over: int) -> None:
        student = row(STUDENT).requires_grad_()
        partial_l2(student, row(TARGET), MARGIN, reduction).backward()
        expected = row(GRADIENT) / over
        torch.testing.assert_close(student.grad, expected, rtol=1e-6, atol=0)

    def test_pulls_in_proportion_to_the_weight_that_it_is_multiplied_by(self) -> None:
        student = row(STUDENT).requires_grad_()
        (0.25 * partial_l2(student, row(TARGET), MARGIN, "sum")).backward()
        assert torch.equal(student.grad, row(GRADIENT) / 4)

    @pytest.mark.parametrize(
        ("student", "target"), [(-1.0, 0.0), (0.0, 0.0), (-0.5, -0.5), (2.0, 2.0), (-1.0, -7.0)]
    )
    def test_on_the_edge_of_the_active_region_is_zero_and_flat(self, student: float, target: float) -> None:
        leaf = row([student]).requires_grad_()
        loss = partial_l2(leaf, row([target]), MARGIN, "sum")
        loss.backward()
        assert loss.item() == 0.0
        assert leaf.grad.item() == 0.0

    def test_has_a_margin_for_each_channel(self) -> None:
        student, target = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), -9.0)
        # The target rises to the margin: 1^2 + 2^2 + 9^2, the last margin being below it.
        loss = partial_l2(student, target, torch.tensor([-1.0, -2.0, -20.0]), "sum")
        assert loss.item() == 86.0

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("masked", [False, True])
    def test_has_the_gradient_of_finite_differences(self, reduction: str, masked: bool) -> None:
        student = normal(0, 2, 3, 3, 2).double().requires_grad_()
        target, margin = normal(1, 2, 3, 3, 2).double(), -normal(2, 3).double().abs()
        mask = corner_mask(2, 3, 2, [(2, 2), (3, 1)]) if masked else None
        assert torch.autograd.gradcheck(lambda s: partial_l2(s, target, margin, reduction, mask), (student,))

    def test_gives_the_target_no_gradient(self) -> None:
        student, target = row(STUDENT).requires_grad_(), row(TARGET).requires_grad_()
        partial_l2(student, target, MARGIN, "sum").backward()
        assert target.grad is None

    def test_writes_to_none_of_its_arguments(self) -> None:
        student, target, margin = row(STUDENT), row(TARGET), MARGIN.clone()
        partial_l2(student, target, margin, "sum", torch.ones(1, 1, 6, dtype=torch.bool))
        assert torch.equal(student, row(STUDENT))
        assert torch.equal(target, row(TARGET))
        assert torch.equal(margin, MARGIN)

    @PROPERTY
    @given(CASES)
    def test_is_the_sum_and_the_mean_worked_out_element_by_element(self, case: Case) -> None:
        target = absolute_max(case.teacher, case.groups)
        for mask in (None, case.mask):
            where = torch.ones_like(case.mask) if mask is None else mask
            total, count, gradient = worked_out(case.student, target, case.margin, where)
            student = case.student.clone().requires_grad_()
            loss = partial_l2(student, target, case.margin, "sum", mask)
            loss.backward()
            assert loss.item() == total
            assert torch.equal(student.grad, gradient)
            mean = partial_l2(student, target, case.margin, "mean", mask)
            assert mean.item() == pytest.approx(total / count, rel=1e-6)

    @pytest.mark.parametrize("reduction", ["", "none", "SUM", None])
    def test_refuses_an_unknown_reduction(self, reduction: str) -> None:
        with pytest.raises(ValueError, match="'sum' or 'mean'"):
            partial_l2(row(STUDENT), row(TARGET), MARGIN, reduction)

    @pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 4, 5), (1, 3, 1, 5), (1, 3, 5, 4)])
    def test_refuses_a_target_of_another_shape_also_one_that_would_broadcast(
        self, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match="must have one shape"):
            partial_l2(torch.zeros(1, 3, 4, 5), torch.zeros(shape), torch.zeros(3), "sum")


class TestPadding:
    def test_counts_no_padded_element(self) -> None:
        # Positions 1, 3 and 4 are padding: 1 + 2.25 + 0 = 3.25 over 3 of the 6.
        mask = torch.tensor([[[True, False, True, False, False, True]]])
        loss = partial_l2(row(STUDENT), row(TARGET), MARGIN, "sum", mask)
        assert loss.item() == 3.25
        mean = partial_l2(row(STUDENT), row(TARGET), MARGIN, "mean", mask)
        assert mean.item() == pytest.approx(3.25 / 3, rel=1e-6)

    def test_is_counted_once_for_each_channel(self) -> None:
        # Two channels of the row above: 6.5 over 2 * 3.
        student, target = row(STUDENT).repeat(1, 2, 1, 1), row(TARGET).repeat(1, 2, 1, 1)
        mask = torch.tensor([[[True, False, True, False, False, True]]])
        mean = partial_l2(student, target, MARGIN.repeat(2), "mean", mask)
        assert mean.item() == pytest.approx(6.5 / 6, rel=1e-6)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_may_be_masked_with_and_without_a_channel_dimension(self, reduction: str) -> None:
        student, target, margin = normal(0, 2, 3, 4, 5), normal(1, 2, 3, 4, 5), -torch.ones(3)
        mask = corner_mask(2, 4, 5, [(2, 5), (4, 3)])
        loss = partial_l2(student, target, margin, reduction, mask)
        assert torch.equal(loss, partial_l2(student, target, margin, reduction, mask[:, None]))
        assert not torch.equal(loss, partial_l2(student, target, margin, reduction))

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("content", [0.0, 1e30, -1e30, math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("side", ["target", "student", "both"])
    def test_content_reaches_neither_the_loss_nor_the_gradient(
        self, reduction: str, content: float, side: str
    ) -> None:
        mask = corner_mask(2, 4, 5, [(2, 5), (4, 3)])
        target, margin = normal(1, 2, 3, 4, 5), -torch.ones(3)
        student = normal(0, 2, 3, 4, 5).requires_grad_()
        expected = partial_l2(student, target, margin, reduction, mask)
        expected.backward()

        padding = ~mask[:, None].expand(2, 3, 4, 5)
        other = student.detach().clone()
        if side != "target":
            other[padding] = content
        if side != "student":
            target[padding] = content
        other.requires_grad_()
        loss = partial_l2(other, target, margin, reduction, mask)
        loss.backward()
        assert torch.equal(loss, expected)
        assert torch.equal(other.grad, student.grad)
        assert (other.grad[padding] == 0).all()


class TestInvarianceOfTheMean:
    def test_to_a_batch_given_twice(self) -> None:
        student, target, margin = normal(0, 2, 3, 4, 5), normal(1, 2, 3, 4, 5), -torch.ones(3)
        once = partial_l2(student, target, margin, "mean")
        twice = partial_l2(student.repeat(2, 1, 1, 1), target.repeat(2, 1, 1, 1), margin, "mean")
        assert twice.item() == pytest.approx(once.item(), rel=1e-6)

    def test_to_the_number_of_processes_that_share_images_of_one_size(self) -> None:
        student, target, margin = normal(0, 4, 3, 4, 5), normal(1, 4, 3, 4, 5), -torch.ones(3)
        whole = partial_l2(student, target, margin, "mean").item()
        halves = [partial_l2(s, t, margin, "mean").item() for s, t in zip(student.split(2), target.split(2))]
        assert sum(halves) / 2 == pytest.approx(whole, rel=1e-6)

    @PROPERTY
    @given(
        st.integers(0, 99),
        st.tuples(st.integers(0, 3), st.integers(0, 3)).filter(any),
        st.sampled_from(REDUCTIONS),
    )
    def test_and_of_the_sum_to_masked_padding(self, seed: int, more: tuple[int, int], reduction: str) -> None:
        student, target, margin = normal(seed, 1, 3, 4, 5), normal(99, 1, 3, 4, 5), -torch.ones(3)
        expected = partial_l2(student, target, margin, reduction)
        by = (0, more[0], 0, more[1])
        padded = [torch.nn.functional.pad(x, by, value=v) for x, v in ((student, 3), (target, 7))]
        mask = corner_mask(1, 4 + more[1], 5 + more[0], [(4, 5)])
        loss = partial_l2(*padded, margin, reduction, mask)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("size", [200.0, 60000.0])
    def test_of_large_half_precision_features_is_finite(self, dtype: torch.dtype, size: float) -> None:
        student = torch.full((1, 4, 64, 64), -size, dtype=dtype).requires_grad_()
        target = torch.full((1, 4, 64, 64), size, dtype=dtype)
        size = target[0, 0, 0, 0].item()  # as rounded to the type
        # The square of a difference, 160 000 or more, is over float16's 65504; so are the sums.
        loss = partial_l2(student, target, torch.zeros(4), "sum")
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx((2 * size) ** 2 * 4 * 64 * 64, rel=1e-5)
        mean = partial_l2(student, target, torch.zeros(4), "mean")
        assert mean.item() == pytest.approx((2 * size) ** 2, rel=1e-5)
        mean.backward()
        # 2 * (-2 size) / 16384, an ordinary number.
        expected = torch.full_like(student, -4 * size / 16384)
        assert student.grad.dtype == dtype
        assert torch.equal(student.grad, expected)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_of_half_precision_is_that_of_the_same_values_in_float32(
        self, dtype: torch.dtype, reduction: str
    ) -> None:
        student, target = normal(0, 2, 3, 4, 5).to(dtype), normal(1, 2, 3, 4, 5).to(dtype)
        margin = -normal(2, 3).abs()
        loss = partial_l2(student, target, margin, reduction)
        assert torch.equal(loss, partial_l2(student.float(), target.float(), margin, reduction))

    def test_takes_a_float_student_beside_a_half_teacher(self) -> None:
        # Under mixed precision the norm on the student's side gives float32.
        loss = partial_l2(row(STUDENT), row(TARGET).half(), MARGIN, "sum")
        assert loss.dtype == torch.float32
        assert loss.item() == 14.5

    def test_stays_in_double_for_a_double_student(self) -> None:
        # (1 + 1e-9)^2: float32 would give 1.
        loss = partial_l2(row([1.0]).double() + 1e-9, row([0.0]).double(), MARGIN, "sum")
        assert loss.dtype == torch.float64
        assert loss.item() == pytest.approx(1 + 2e-9, rel=1e-12)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    def test_is_unaffected_by_an_enclosing_autocast(self, reduction: str) -> None:
        student, teacher = normal(0, 2, 3, 8, 8).bfloat16(), normal(1, 2, 6, 8, 8).bfloat16()
        groups = torch.tensor([[0, 3], [1, 4], [2, 5]])
        expected = pooled_partial_l2(student, teacher, groups, -torch.ones(3), reduction)
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            loss = pooled_partial_l2(student, teacher, groups, -torch.ones(3), reduction)
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)


class TestPooledPartialL2:
    def test_pools_by_the_largest_magnitude_first(self) -> None:
        # Group (0, 1) pools to 2 and -4, which the margin lifts to -1; group (2) to -.5, alone.
        # (1 - 2)^2 + (0 + 1)^2 = 2, (-.25 + .5)^2 = .0625, and nothing at -1 against -.5.
        teacher = torch.tensor([[2.0, 1.0], [-1.0, -4.0], [-0.5, -0.5]]).reshape(1, 3, 1, 2)
        student = torch.tensor([[1.0, 0.0], [-0.25, -1.0]]).reshape(1, 2, 1, 2).requires_grad_()
        groups, margin = torch.tensor([[0, 1], [2, -1]]), torch.tensor([-1.0, -1.0])
        loss = pooled_partial_l2(student, teacher, groups, margin, "sum")
        loss.backward()
        assert loss.item() == 2.0625
        assert student.grad.flatten().tolist() == [-2.0, 2.0, 0.5, 0.0]
        mean = pooled_partial_l2(student, teacher, groups, margin, "mean")
        assert mean.item() == 2.0625 / 4

    @PROPERTY
    @given(
        CASES,
        st.sampled_from(sorted(LAYOUTS)),
        st.sampled_from(sorted(LAYOUTS)),
        st.sampled_from(REDUCTIONS),
        st.booleans(),
    )
    def test_equals_the_pooling_and_the_loss_in_sequence(
        self, case: Case, student_layout: str, teacher_layout: str, reduction: str, masked: bool
    ) -> None:
        mask = case.mask if masked else None
        plain = case.student.clone().requires_grad_()
        target = absolute_max(case.teacher, case.groups)
        expected = partial_l2(plain, target, case.margin, reduction, mask)
        expected.backward()

        student = LAYOUTS[student_layout](case.student).detach().requires_grad_()
        teacher = LAYOUTS[teacher_layout](case.teacher)
        assert torch.equal(student, case.student)
        assert torch.equal(teacher, case.teacher)
        loss = pooled_partial_l2(student, teacher, case.groups, case.margin, reduction, mask)
        loss.backward()
        assert torch.equal(loss, expected)
        assert torch.equal(student.grad, plain.grad)

    @PROPERTY
    @given(CASES)
    def test_is_what_is_worked_out_element_by_element(self, case: Case) -> None:
        target = torch.zeros(case.student.shape)
        for n, c, y, x in np.ndindex(*target.shape):
            members = [j for j in case.groups[c].tolist() if j >= 0]
            target[n, c, y, x] = max((case.teacher[n, j, y, x].item() for j in members), key=abs)
        total, count, gradient = worked_out(case.student, target, case.margin, case.mask)
        student = case.student.clone().requires_grad_()
        loss = pooled_partial_l2(student, case.teacher, case.groups, case.margin, "mean", case.mask[:, None])
        (loss * count).backward()
        assert loss.item() == pytest.approx(total / count, rel=1e-6)
        torch.testing.assert_close(student.grad, gradient, rtol=1e-6, atol=0)

    @pytest.mark.parametrize("reduction", REDUCTIONS)
    @pytest.mark.parametrize("masked", [False, True])
    def test_has_the_gradient_of_finite_differences(self, reduction: str, masked: bool) -> None:
        student = normal(0, 2, 2, 3, 2).double().requires_grad_()
        teacher, margin = normal(1, 2, 5, 3, 2).double(), -normal(2, 2).double().abs()
        groups = torch.tensor([[0, 2, 4], [1, 3, -1]])
        mask = corner_mask(2, 3, 2, [(2, 2), (3, 1)]) if masked else None
        assert torch.autograd.gradcheck(
            lambda s: pooled_partial_l2(s, teacher, groups, margin, reduction, mask), (student,)
        )

    def test_gives_the_teacher_no_gradient(self) -> None:
        student, teacher = normal(0, 1, 2, 3, 3).requires_grad_(), normal(1, 1, 4, 3, 3)
        teacher.requires_grad_()
        groups = torch.tensor([[0, 1], [2, 3]])
        pooled_partial_l2(student, teacher, groups, -torch.ones(2), "sum").backward()
        assert teacher.grad is None
        assert student.grad.abs().sum() > 0

    @pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
    def test_lets_no_padding_of_the_teacher_through(self, content: float) -> None:
        mask = corner_mask(1, 3, 4, [(2, 3)])
        groups, margin = torch.tensor([[0, 1], [2, 3]]), -torch.ones(2)
        results = []
        for filled in (0.0, content):
            student = normal(0, 1, 2, 3, 4).requires_grad_()
            teacher = normal(1, 1, 4, 3, 4).where(mask[:, None], torch.tensor(filled))
            loss = pooled_partial_l2(student, teacher, groups, margin, "mean", mask)
            loss.backward()
            results.append((loss, student.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])

    def test_refuses_an_unknown_reduction(self) -> None:
        with pytest.raises(ValueError, match="'sum' or 'mean'"):
            pooled_partial_l2(row([1.0]), row([1.0]), torch.tensor([[0]]), MARGIN, "max")

    def test_refuses_more_groups_than_student_channels(self) -> None:
        with pytest.raises(ValueError, match="need as many groups"):
            pooled_partial_l2(row([1.0]), row([1.0]), torch.tensor([[0], [0]]), torch.zeros(2), "sum")
