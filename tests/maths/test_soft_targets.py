"""Losses on predictions: their values, their gradients, what does not count, extremes and precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det.maths.soft_targets import (
    foreground_confidence,
    sigmoid_soft_loss,
    soft_foreground,
    softmax_soft_loss,
    weighted_box_loss,
    weighted_giou_loss,
    weighted_sigmoid_loss,
)

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 9999)
HALF = [torch.float16, torch.bfloat16]
LN3 = math.log(3)  # whose sigmoid is .75


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def worked_out(student: Tensor, teacher: Tensor, mask: Tensor, gamma: float) -> tuple[float, Tensor]:
    """The soft loss of dense classification and its gradient, element by element, from its definition."""
    total, foreground, gradient = 0.0, 0.0, torch.zeros(student.shape)
    for m in mask.nonzero().flatten().tolist():
        foreground += sigmoid(teacher[m].max().item()) ** 2
        for k in range(student.shape[1]):
            p, q = sigmoid(student[m, k].item()), sigmoid(teacher[m, k].item())
            weight = abs(p - q) ** gamma
            total += weight * (q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p)))
            gradient[m, k] = weight * (p - q)
    return total / max(foreground, 1), gradient / max(foreground, 1)


class TestSigmoidSoftLoss:
    def test_of_one_element(self) -> None:
        # sigmoid 1/2 against 3/4: .0625 (.75 ln 1.5 + .25 ln .5), over at least 1; gradient .0625 * -.25.
        student, teacher = torch.zeros(1, 1, requires_grad=True), torch.tensor([[LN3]])
        loss = sigmoid_soft_loss(student, teacher)
        loss.backward()
        assert loss.shape == ()
        assert loss.item() == pytest.approx(0.0625 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)
        assert student.grad.item() == pytest.approx(-0.015625, rel=1e-6)

    def test_is_over_the_soft_number_of_foreground_rows(self) -> None:
        # The element above in four rows whose largest probability is 3/4, squared 9/16: 4 over 36/16.
        student, teacher = torch.zeros(4, 2), torch.tensor([[LN3, 0.0]]).repeat(4, 1)
        one = sigmoid_soft_loss(torch.zeros(1, 1), torch.tensor([[LN3]]))
        assert sigmoid_soft_loss(student, teacher).item() == pytest.approx(one.item() * 16 / 9, rel=1e-6)

    def test_is_over_no_less_than_one(self) -> None:
        # The probability 1/4 of the one row is no divisor: as in the first case, mirrored.
        loss = sigmoid_soft_loss(torch.zeros(1, 1), torch.tensor([[-LN3]]))
        assert loss.item() == pytest.approx(0.0625 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)

    @PROPERTY
    @given(SEEDS, st.integers(1, 6), st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.booleans())
    def test_is_what_is_worked_out_element_by_element(
        self, seed: int, m: int, k: int, gamma: float, masked: bool
    ) -> None:
        student, teacher = 2 * normal(seed, m, k), 2 * normal(seed + 1, m, k)
        mask = normal(seed + 2, m) > 0 if masked else None
        expected, gradient = worked_out(
            student, teacher, torch.ones(m).bool() if mask is None else mask, gamma
        )
        student.requires_grad_()
        loss = sigmoid_soft_loss(student, teacher, mask, gamma)
        loss.backward()
        assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(student.grad, gradient, rtol=1e-4, atol=1e-6)

    @PROPERTY
    @given(SEEDS, st.sampled_from([0.1, 1.0, 100.0]), st.sampled_from([0.0, 2.0]))
    def test_of_agreement_is_zero_and_flat(self, seed: int, size: float, gamma: float) -> None:
        student = (size * normal(seed, 5, 3)).requires_grad_()
        loss = sigmoid_soft_loss(student, student, gamma=gamma)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(student.grad, torch.zeros(5, 3))

    def test_has_the_gradient_of_finite_differences_where_the_weight_is_constant(self) -> None:
        student, teacher = normal(0, 6, 3).double().requires_grad_(), normal(1, 6, 3).double()
        mask = torch.tensor([True, False, True, True, False, True])
        assert torch.autograd.gradcheck(lambda s: sigmoid_soft_loss(s, teacher, mask, gamma=0.0), (student,))

    @pytest.mark.parametrize("logit", [100.0, -100.0])
    def test_of_extreme_logits_is_their_distance(self, logit: float) -> None:
        # Weight 1, and -ln sigmoid(-100) = 100; gradient one or minus one.
        student = torch.tensor([[logit]], requires_grad=True)
        loss = sigmoid_soft_loss(student, -student)
        loss.backward()
        assert loss.item() == pytest.approx(100.0, rel=1e-6)
        assert student.grad.item() == math.copysign(1.0, logit)

    @pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("side", ["student", "teacher", "both"])
    def test_lets_nothing_through_from_rows_that_do_not_count(self, content: float, side: str) -> None:
        student, teacher = normal(0, 4, 3), 3 + normal(1, 4, 3)
        mask = torch.tensor([True, False, True, True])
        plain = student[mask].requires_grad_()
        expected = sigmoid_soft_loss(plain, teacher[mask])
        expected.backward()
        if side != "teacher":
            student[1] = content
        if side != "student":
            teacher[1] = content
        student.requires_grad_()
        loss = sigmoid_soft_loss(student, teacher, mask)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        torch.testing.assert_close(student.grad[mask], plain.grad)
        assert (student.grad[1] == 0).all()

    @pytest.mark.parametrize(("rows", "mask"), [(3, torch.zeros(3, dtype=torch.bool)), (0, None)])
    def test_without_rows_is_zero_in_the_students_graph(self, rows: int, mask: Tensor | None) -> None:
        student = torch.full((rows, 5), math.nan, requires_grad=True)
        loss = sigmoid_soft_loss(student, torch.zeros(rows, 5), mask)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(student.grad, torch.zeros(rows, 5))

    def test_refuses_shapes_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"student \(4, 3\) and teacher \(4, 1\) must have one shape"):
            sigmoid_soft_loss(torch.zeros(4, 3), torch.zeros(4, 1))
        with pytest.raises(ValueError, match=r"mask \(1,\) must be \(4,\)"):
            sigmoid_soft_loss(torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(1).bool())


class TestSoftmaxSoftLoss:
    def test_of_one_region(self) -> None:
        # (3/4, 1/4) against (1/2, 1/2): .75 ln 1.5 + .25 ln .5; gradient softmax(s) - softmax(t).
        student, teacher = torch.zeros(1, 2, requires_grad=True), torch.tensor([[LN3, 0.0]])
        loss = softmax_soft_loss(student, teacher)
        loss.backward()
        assert loss.shape == ()
        assert loss.item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), rel=1e-5)
        torch.testing.assert_close(student.grad, torch.tensor([[-0.25, 0.25]]))

    def test_averages_over_regions(self) -> None:
        teacher = torch.tensor([[LN3, 0.0], [0.0, 0.0]])
        expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5)) / 2
        assert softmax_soft_loss(torch.zeros(2, 2), teacher).item() == pytest.approx(expected, rel=1e-5)

    def test_at_a_temperature(self) -> None:
        # Logits twice as large at temperature 2: the same distributions, times 4; gradient times 2.
        student, teacher = torch.zeros(1, 2, requires_grad=True), torch.tensor([[2 * LN3, 0.0]])
        loss = softmax_soft_loss(student, teacher, temperature=2.0)
        loss.backward()
        assert loss.item() == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)
        torch.testing.assert_close(student.grad, torch.tensor([[-0.5, 0.5]]))

    @PROPERTY
    @given(SEEDS, st.integers(1, 5), st.integers(2, 5), st.sampled_from([0.5, 1.0, 3.0]))
    def test_is_what_is_worked_out_element_by_element(
        self, seed: int, r: int, k: int, temperature: float
    ) -> None:
        student, teacher = normal(seed, r, k), normal(seed + 1, r, k)
        total = 0.0
        for s, t in zip(student.tolist(), teacher.tolist()):
            ps, pt = ([math.exp(x / temperature) for x in row] for row in (s, t))
            total += sum(q / sum(pt) * math.log((q / sum(pt)) / (p / sum(ps))) for p, q in zip(ps, pt))
        loss = softmax_soft_loss(student, teacher, temperature)
        assert loss.item() == pytest.approx(temperature**2 * total / r, rel=1e-4, abs=1e-6)

    @PROPERTY
    @given(SEEDS, st.integers(-50, 50))
    def test_does_not_depend_on_what_is_added_to_all_logits(self, seed: int, shift: int) -> None:
        student, teacher = normal(seed, 4, 3), normal(seed + 1, 4, 3)
        loss = softmax_soft_loss(student + shift, teacher - shift)
        assert loss.item() == pytest.approx(softmax_soft_loss(student, teacher).item(), rel=1e-3, abs=1e-5)

    @PROPERTY
    @given(SEEDS, st.sampled_from([1.0, 100.0]))
    def test_of_agreement_is_zero_and_flat(self, seed: int, size: float) -> None:
        student = (size * normal(seed, 5, 3)).requires_grad_()
        loss = softmax_soft_loss(student, student)
        loss.backward()
        assert loss.item() == 0.0
        assert student.grad.abs().max() < 1e-6

    def test_of_extreme_logits_is_their_distance(self) -> None:
        student = torch.tensor([[100.0, -100.0]], requires_grad=True)
        loss = softmax_soft_loss(student, -student)
        loss.backward()
        assert loss.item() == 200.0
        assert student.grad.tolist() == [[1.0, -1.0]]

    def test_has_the_gradient_of_finite_differences(self) -> None:
        student, teacher = normal(0, 5, 4).double().requires_grad_(), normal(1, 5, 4).double()
        assert torch.autograd.gradcheck(lambda s: softmax_soft_loss(s, teacher, 2.0), (student,))

    def test_without_regions_is_zero_in_the_students_graph(self) -> None:
        student = torch.zeros(0, 5, requires_grad=True)
        loss = softmax_soft_loss(student, torch.zeros(0, 5))
        loss.backward()
        assert loss.item() == 0.0
        assert student.grad.shape == (0, 5)

    def test_refuses_shapes_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"student \(4, 3\) and teacher \(1, 3\) must have one shape"):
            softmax_soft_loss(torch.zeros(4, 3), torch.zeros(1, 3))


class TestWeightedBoxLoss:
    def test_sums_over_the_four_and_averages_by_weight(self) -> None:
        # Distances 1 + 2 + 0 + 3 = 6 at weight 1, and 4 at weight 3: (6 + 12) / 4.
        student = boxes([1, 2, 3, 4], [0, 0, 0, 0]).requires_grad_()
        teacher, weight = boxes([2, 0, 3, 7], [1, 1, 1, 1]), torch.tensor([1.0, 3.0])
        loss = weighted_box_loss(student, teacher, weight)
        loss.backward()
        assert loss.shape == ()
        assert loss.item() == 4.5
        assert student.grad.tolist() == [[-0.25, 0.25, 0.0, -0.25], [-0.75] * 4]

    def test_is_squared_below_beta(self) -> None:
        # Beta 2: distance 1 counts 1 / (2 * 2), distance 3 counts 3 - 2 / 2.
        loss = weighted_box_loss(boxes([1, 3, 0, 0]), boxes([0, 0, 0, 0]), torch.ones(1), beta=2.0)
        assert loss.item() == 2.25

    def test_is_over_no_less_than_one(self) -> None:
        loss = weighted_box_loss(boxes([1, 1, 1, 1]), boxes([0, 0, 0, 0]), torch.tensor([0.25]))
        assert loss.item() == 1.0

    @PROPERTY
    @given(SEEDS, st.integers(1, 6), st.sampled_from([0.0, 0.1, 1.0]))
    def test_is_what_is_worked_out_element_by_element(self, seed: int, m: int, beta: float) -> None:
        student, teacher = normal(seed, m, 4), normal(seed + 1, m, 4)
        weight = normal(seed + 2, m).clamp_min(0)
        total = 0.0
        for s, t, w in zip(student.tolist(), teacher.tolist(), weight.tolist()):
            for a, b in zip(s, t):
                d = abs(a - b)
                total += w * (d * d / (2 * beta) if d < beta else d - beta / 2)
        loss = weighted_box_loss(student, teacher, weight, beta)
        assert loss.item() == pytest.approx(total / max(weight.sum().item(), 1), rel=1e-5)

    @pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("side", ["student", "teacher", "both"])
    @pytest.mark.parametrize("beta", [0.0, 0.5])
    def test_lets_nothing_through_from_rows_of_weight_zero(
        self, content: float, side: str, beta: float
    ) -> None:
        student, teacher = boxes([2, 2, 2, 2], [0, 0, 0, 0]), boxes([0, 0, 0, 0], [0, 0, 0, 0])
        if side != "teacher":
            student[1] = content
        if side != "student":
            teacher[1] = content
        student.requires_grad_()
        loss = weighted_box_loss(student, teacher, torch.tensor([1.0, 0.0]), beta)
        loss.backward()
        assert loss.item() == 8.0 - 2 * beta  # 4 (2 - beta / 2)
        assert student.grad.tolist() == [[1.0] * 4, [0.0] * 4]

    @pytest.mark.parametrize("beta", [0.0, 0.5])
    def test_has_the_gradient_of_finite_differences(self, beta: float) -> None:
        student, teacher = normal(0, 5, 4).double().requires_grad_(), normal(1, 5, 4).double()
        weight = normal(2, 5).double().abs()
        assert torch.autograd.gradcheck(lambda s: weighted_box_loss(s, teacher, weight, beta), (student,))

    def test_gives_the_weight_no_gradient(self) -> None:
        student, weight = torch.ones(2, 4, requires_grad=True), torch.ones(2, requires_grad=True)
        weighted_box_loss(student, torch.zeros(2, 4), weight).backward()
        assert weight.grad is None

    @pytest.mark.parametrize("rows", [0, 3])
    def test_without_weight_is_zero_in_the_students_graph(self, rows: int) -> None:
        student = torch.full((rows, 4), math.nan, requires_grad=True)
        loss = weighted_box_loss(student, torch.zeros(rows, 4), torch.zeros(rows))
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(student.grad, torch.zeros(rows, 4))

    def test_refuses_shapes_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match=r"student \(3, 4\) and teacher \(1, 4\) must have one shape"):
            weighted_box_loss(torch.zeros(3, 4), torch.zeros(1, 4), torch.ones(3))
        with pytest.raises(ValueError, match=r"weight \(3, 1\) must be \(3,\)"):
            weighted_box_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.ones(3, 1))


def dense(student: Tensor, teacher: Tensor) -> Tensor:
    return sigmoid_soft_loss(student, teacher)


def regions(student: Tensor, teacher: Tensor) -> Tensor:
    return softmax_soft_loss(student, teacher, temperature=2.0)


def box_predictions(student: Tensor, teacher: Tensor) -> Tensor:
    weight = torch.arange(len(teacher), device=teacher.device) * teacher.new_ones(())
    return weighted_box_loss(student, teacher, weight, beta=0.1)


@pytest.mark.parametrize("loss", [dense, regions, box_predictions])
class TestAllThree:
    @pytest.mark.parametrize("dtype", HALF)
    def test_of_half_precision_are_those_of_the_same_values_in_float32(self, loss, dtype) -> None:
        student, teacher = normal(0, 5, 4).to(dtype), normal(1, 5, 4).to(dtype)
        assert loss(student, teacher).dtype == torch.float32
        assert torch.equal(loss(student, teacher), loss(student.float(), teacher.float()))

    def test_stay_in_double(self, loss) -> None:
        assert loss(normal(0, 5, 4).double(), normal(1, 5, 4)).dtype == torch.float64

    def test_are_unaffected_by_an_enclosing_autocast(self, loss) -> None:
        student, teacher = normal(0, 5, 4).bfloat16(), normal(1, 5, 4).bfloat16()
        expected = loss(student, teacher)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = loss(student, teacher)
        assert found.dtype == torch.float32
        assert torch.equal(found, expected)

    def test_give_the_teacher_no_gradient(self, loss) -> None:
        student, teacher = normal(0, 5, 4).requires_grad_(), normal(1, 5, 4).requires_grad_()
        loss(student, teacher).backward()
        assert teacher.grad is None
        assert student.grad.abs().sum() > 0


class TestWeightedSigmoidLoss:
    def test_by_hand(self) -> None:
        # Probabilities 1/2 and 3/4 against 3/4: nothing in the second row, in the first log(1.5), log(0.5).
        student, teacher = torch.tensor([0.0, LN3, 5.0]), torch.tensor([LN3, LN3, float("nan")])
        loss = weighted_sigmoid_loss(student, teacher, torch.tensor([3.0, 1.0, 0.0]))
        one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        assert loss.item() == pytest.approx(3 * one / 4, rel=1e-5)

    def test_is_over_no_less_than_one(self) -> None:
        loss = weighted_sigmoid_loss(torch.zeros(1), torch.tensor([LN3]), torch.tensor([0.5]))
        assert loss.item() == pytest.approx(0.5 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)

    def test_gradient(self) -> None:
        student = normal(0, 4).double().requires_grad_()
        weight = torch.tensor([1.0, 0.0, 2.0, 0.5]).double()
        teacher = normal(1, 4).double()
        assert torch.autograd.gradcheck(lambda s: weighted_sigmoid_loss(s, teacher, weight), student)


def test_foreground_confidence_is_the_largest_probability_squared() -> None:
    logits = torch.tensor([[LN3, 0.0], [-LN3, -200.0]], dtype=torch.float16)
    found = foreground_confidence(logits)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx([9 / 16, 1 / 16], rel=1e-3)


class TestNormalizers:
    def test_a_soft_number_of_foreground_rows_is_at_least_one(self) -> None:
        # Rows of .75 and .5 at most count .5625 and .25 each.
        logits = torch.tensor([[LN3, -9.0], [LN3, 0.0], [-9.0, 0.0]])
        assert soft_foreground(logits).item() == pytest.approx(2 * 0.5625 + 0.25)
        assert soft_foreground(logits, torch.tensor([False, True, False])).item() == 1

    def test_a_given_one_takes_its_place(self) -> None:
        student, teacher = torch.zeros(2, 1), torch.tensor([[LN3], [0.0]])
        divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
        loss = sigmoid_soft_loss(student, teacher, gamma=1.0, normalizer=5.0)
        assert loss.item() == pytest.approx(0.25 * divergence / 5, rel=1e-5)


class TestWeightedGiouLoss:
    def test_of_two_rows(self) -> None:
        # Half of the first box is in the other: IoU 1/3, and their hull is their union. The second two are as
        # wide as the gap between them: IoU 0, a third of the hull is neither.
        student = boxes([0, 0, 2, 2], [0, 0, 1, 1])
        teacher = boxes([1, 0, 3, 2], [2, 0, 3, 1])
        loss = weighted_giou_loss(student, teacher, torch.tensor([3.0, 6.0]))
        assert loss.item() == pytest.approx(3 * (1 - 1 / 3) + 6 * (1 + 1 / 3), rel=1e-5)

    def test_equal_boxes_cost_nothing(self) -> None:
        box = boxes([10, 20, 110, 90])
        assert weighted_giou_loss(box, box, torch.ones(1)).item() == pytest.approx(0, abs=1e-6)

    def test_a_row_of_weight_0_may_hold_anything(self) -> None:
        student = boxes([0, 0, 2, 2], [math.nan] * 4).requires_grad_()
        loss = weighted_giou_loss(student, boxes([1, 0, 3, 2], [math.inf] * 4), torch.tensor([1.0, 0.0]))
        loss.backward()
        assert loss.item() == pytest.approx(2 / 3, rel=1e-5)
        assert student.grad.isfinite().all()
        assert not student.grad[1].any()

    @pytest.mark.parametrize("dtype", HALF)
    def test_half_precision_boxes_give_a_float32_loss(self, dtype: torch.dtype) -> None:
        # 1000 squared is beyond float16.
        loss = weighted_giou_loss(*(boxes([0, 0, 1000, 1000]).to(dtype),) * 2, torch.ones(1))
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(0, abs=1e-6)

    def test_other_shapes_are_refused(self) -> None:
        with pytest.raises(ValueError, match="must have one shape"):
            weighted_giou_loss(boxes([0, 0, 1, 1]), boxes([0, 0, 1, 1], [0, 0, 1, 1]), torch.ones(1))
        with pytest.raises(ValueError, match="one for each row"):
            weighted_giou_loss(boxes([0, 0, 1, 1]), boxes([0, 0, 1, 1]), torch.ones(2))
