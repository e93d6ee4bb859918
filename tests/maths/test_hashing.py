"""Feature mimicking: the projection, its hash bits and their loss, the squared error, neighbourhoods."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mgd_det.maths.hashing import (
    CHUNK_ELEMENTS,
    fast_product_dtype,
    hashing_loss,
    mimicking_loss,
    neighbourhoods,
    projection,
)

PROPERTY = settings(max_examples=25, deadline=None, derandomize=True, database=None)
SEEDS = st.integers(0, 9999)
HALF = [torch.float16, torch.bfloat16]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn_mask(seed: int, rows: int) -> Tensor:
    """True for about half of the rows, at random, and for the first."""
    mask = torch.rand(rows, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[0] = True
    return mask


def worked_out(student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> float:
    """The hashing loss, element by element, from its definition."""
    total, count = 0.0, 0
    for s, t, counts in zip(student.tolist(), teacher.tolist(), mask.tolist()):
        for w, b in zip(weight.tolist(), bias.tolist()):
            if counts:
                bit = sum(x * y for x, y in zip(w, t)) + b > 0
                probability = 1 / (1 + math.exp(-sum(x * y for x, y in zip(w, s)) - b))
                total -= math.log(probability if bit else 1 - probability)
                count += 1
    return total / count


class LargestResult(TorchDispatchMode):
    """Notes the most elements that a tensor held which any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


class TestProjection:
    def test_is_the_same_each_time_for_one_seed(self) -> None:
        first = projection(3, 5, 0.1, seed=7)
        assert first.shape == (3, 5)
        assert first.dtype == torch.float32
        assert not first.requires_grad
        assert torch.equal(first, projection(3, 5, 0.1, seed=7))
        assert not torch.equal(first, projection(3, 5, 0.1, seed=8))

    def test_takes_nothing_from_the_global_generator(self) -> None:
        torch.manual_seed(0)
        expected = torch.rand(4)
        torch.manual_seed(0)
        projection(3, 5, 0.1, seed=7)
        assert torch.equal(torch.rand(4), expected)

    def test_has_the_standard_deviation_that_is_asked_for(self) -> None:
        # Five standard errors of 40000 draws: std / 56.6 for the deviation, std / 40 for the mean.
        drawn = projection(100, 400, 0.02, seed=0)
        assert drawn.std().item() == pytest.approx(0.02, rel=0.018)
        assert abs(drawn.mean().item()) < 0.02 / 40


class TestHashingLoss:
    def test_is_the_cross_entropy_of_the_bits(self) -> None:
        # W t + b = (1, 1 - 3) gives the bits (1, 0); W s + b = (2, 3):
        # ln(1 + e^-2) = .1269280110 and ln(1 + e^3) = 3.0485873516, on average 1.5877576813.
        weight, bias = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([0.0, -3.0])
        student, teacher = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 0.0]])
        loss = hashing_loss(student, teacher, weight, bias)
        assert loss.shape == ()
        assert loss.item() == pytest.approx(1.5877576813, rel=1e-7)

    def test_on_the_hyperplane_the_bit_is_zero(self) -> None:
        one, none = torch.ones(1, 1), torch.zeros(1)
        # ln(1 + e^2), and with a bit of one ln(1 + e^-2).
        loss = hashing_loss(torch.tensor([[2.0]]), torch.tensor([[0.0]]), one, none)
        assert loss.item() == pytest.approx(2.1269280110, rel=1e-7)
        loss = hashing_loss(torch.tensor([[2.0]]), torch.tensor([[1e-30]]), one, none)
        assert loss.item() == pytest.approx(0.1269280110, rel=1e-7)

    def test_pulls_the_student_across_the_hyperplane(self) -> None:
        # (sigmoid(0) - 1) * w = -.5 * (3, -4), over one row and one hash.
        student = torch.zeros(1, 2, requires_grad=True)
        hashing_loss(
            student, torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, -4.0]]), torch.zeros(1)
        ).backward()
        assert student.grad.tolist() == [[-1.5, 2.0]]

    @PROPERTY
    @given(SEEDS, st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))
    def test_is_what_is_worked_out_element_by_element(self, seed: int, m: int, d: int, k: int) -> None:
        args = normal(seed, m, d), normal(seed + 1, m, d), normal(seed + 2, k, d), normal(seed + 3, k)
        mask = drawn_mask(seed, m)
        assert hashing_loss(*args).item() == pytest.approx(worked_out(*args, torch.ones_like(mask)), rel=1e-5)
        assert hashing_loss(*args, mask).item() == pytest.approx(worked_out(*args, mask), rel=1e-5)

    @PROPERTY
    @given(SEEDS, st.floats(0.01, 100.0))
    def test_does_not_depend_on_the_length_of_the_teachers_vectors(self, seed: int, scale: float) -> None:
        student, teacher, weight = normal(seed, 4, 3), normal(seed + 1, 4, 3), normal(seed + 2, 5, 3)
        loss = hashing_loss(student, teacher, weight, torch.zeros(5))
        assert torch.equal(loss, hashing_loss(student, scale * teacher, weight, torch.zeros(5)))

    @pytest.mark.parametrize("masked", [False, True])
    def test_has_the_gradient_of_finite_differences(self, masked: bool) -> None:
        student, teacher = normal(0, 6, 3).double().requires_grad_(), normal(1, 6, 3).double()
        weight, bias = normal(2, 4, 3).double(), normal(3, 4).double()
        mask = drawn_mask(4, 6) if masked else None
        assert torch.autograd.gradcheck(
            lambda s: 3 * hashing_loss(s, teacher, weight, bias, mask), (student,)
        )

    def test_gives_no_gradient_to_teacher_weight_and_bias(self) -> None:
        args = [x.requires_grad_() for x in (normal(0, 6, 3), normal(1, 6, 3), normal(2, 4, 3), normal(3, 4))]
        hashing_loss(*args).backward()
        assert args[0].grad.abs().sum() > 0
        assert [x.grad for x in args[1:]] == [None, None, None]

    def test_may_be_differentiated_again_along_a_kept_graph(self) -> None:
        student = normal(0, 6, 3).requires_grad_()
        loss = hashing_loss(student, normal(1, 6, 3), normal(2, 4, 3), torch.zeros(4))
        (first,) = torch.autograd.grad(loss, student, retain_graph=True)
        (second,) = torch.autograd.grad(loss, student, torch.tensor(4.0))
        assert torch.equal(second, 4 * first)

    @pytest.mark.parametrize("masked", [False, True])
    def test_in_chunks_is_that_of_the_whole(self, masked: bool) -> None:
        num_hashes, m = CHUNK_ELEMENTS // 100, 250  # chunks of 100, 100 and 50 rows
        teacher, weight, bias = normal(1, m, 3), normal(2, num_hashes, 3), normal(3, num_hashes)
        mask = drawn_mask(4, m) if masked else None
        student = normal(0, m, 3).requires_grad_()
        loss = hashing_loss(student, teacher, weight, bias, mask)
        loss.backward()

        plain = student.detach().clone().requires_grad_()
        rows = slice(None) if mask is None else mask
        bits = (teacher[rows] @ weight.T + bias > 0).float()
        logits = plain[rows] @ weight.T + bias
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, bits)
        expected.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(student.grad, plain.grad, rtol=1e-4, atol=1e-8)

    def test_holds_no_tensor_of_all_rows_and_hashes(self) -> None:
        num_hashes, m = CHUNK_ELEMENTS // 64, 160
        student = normal(0, m, 3).requires_grad_()
        args = normal(1, m, 3), normal(2, num_hashes, 3), torch.zeros(num_hashes)
        with LargestResult() as largest:
            hashing_loss(student, *args).backward()
        assert student.grad is not None
        assert largest.elements == 64 * num_hashes <= CHUNK_ELEMENTS

    def test_takes_more_hashes_than_a_chunk_holds(self) -> None:
        weight = torch.ones(1, 1).expand(CHUNK_ELEMENTS + 1, 1)
        loss = hashing_loss(torch.zeros(2, 1), torch.ones(2, 1), weight, torch.zeros(1).expand(len(weight)))
        assert loss.item() == pytest.approx(math.log(2), rel=1e-4)

    @pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
    def test_lets_nothing_through_from_rows_that_do_not_count(self, content: float) -> None:
        mask, weight = torch.tensor([True, False, True]), normal(2, 4, 5)
        results = []
        for filled in (0.0, content):
            student, teacher = normal(0, 3, 5), normal(1, 3, 5)
            student[1], teacher[1] = filled, filled
            student.requires_grad_()
            loss = hashing_loss(student, teacher, weight, torch.zeros(4), mask)
            loss.backward()
            assert (student.grad[1] == 0).all()
            results.append((loss, student.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])

    @pytest.mark.parametrize(("rows", "mask"), [(3, torch.zeros(3, dtype=torch.bool)), (0, None)])
    def test_without_rows_is_zero_in_the_students_graph(self, rows: int, mask: Tensor | None) -> None:
        student = torch.full((rows, 5), math.nan, requires_grad=True)
        loss = hashing_loss(student, torch.zeros(rows, 5), normal(2, 4, 5), torch.zeros(4), mask)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(student.grad, torch.zeros(rows, 5))

    @pytest.mark.parametrize("dtype", HALF)
    def test_of_half_precision_is_that_of_the_same_values_in_float32(self, dtype: torch.dtype) -> None:
        student, teacher, weight = normal(0, 6, 3).to(dtype), normal(1, 6, 3).to(dtype), normal(2, 4, 3)
        student.requires_grad_()
        loss = hashing_loss(student, teacher, weight, torch.zeros(4))
        loss.backward()
        assert loss.dtype == torch.float32
        wide = student.detach().float().requires_grad_()
        expected = hashing_loss(wide, teacher.float(), weight, torch.zeros(4))
        expected.backward()
        assert torch.equal(loss, expected)
        assert student.grad.dtype == dtype
        assert torch.equal(student.grad, wide.grad.to(dtype))

    def test_of_large_half_precision_features_is_finite(self) -> None:
        # Projections of 60000 * 64 = 3.84e6, over float16's 65504; all of the student's have the wrong sign.
        student = torch.full((2, 64), -60000.0, dtype=torch.float16).requires_grad_()
        loss = hashing_loss(student, -student.detach(), torch.ones(4, 64), torch.zeros(4))
        loss.backward()
        assert loss.item() == pytest.approx(60000 * 64, rel=1e-3)
        assert student.grad.unique().tolist() == [-0.5]  # (0 - 1) * 1, over two rows

    def test_stays_in_double_for_a_double_student(self) -> None:
        # ln(1 + e^-x) at x = 1e-9 is ln 2 - x / 2.
        loss = hashing_loss(
            torch.tensor([[1e-9]], dtype=torch.float64), torch.ones(1, 1), torch.ones(1, 1), torch.zeros(1)
        )
        assert loss.dtype == torch.float64
        assert loss.item() - math.log(2) == pytest.approx(-5e-10, rel=1e-5)

    def test_is_unaffected_by_an_enclosing_autocast(self) -> None:
        student, teacher, weight = normal(0, 6, 3).bfloat16(), normal(1, 6, 3).bfloat16(), normal(2, 4, 3)
        expected = hashing_loss(student, teacher, weight, torch.zeros(4))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = hashing_loss(student, teacher, weight, torch.zeros(4))
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            ([(4, 3), (1, 3), (2, 3), (2,)], "student .4, 3. and teacher .1, 3. must have one shape"),
            ([(4,), (4,), (2, 4), (2,)], "must have one shape .M, D."),
            ([(4, 3), (4, 3), (2, 4), (2,)], r"must be \(K, 3\) and \(K,\)"),
            ([(4, 3), (4, 3), (2, 3), (1,)], r"weight \(2, 3\) and bias \(1,\)"),
        ],
    )
    def test_refuses_shapes_that_do_not_fit(self, shapes: list[tuple[int, ...]], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            hashing_loss(*(torch.zeros(shape) for shape in shapes))

    def test_refuses_a_mask_of_another_length(self) -> None:
        with pytest.raises(ValueError, match=r"mask \(1,\) must be \(4,\)"):
            hashing_loss(*(torch.zeros(s) for s in [(4, 3), (4, 3), (2, 3), (2,)]), torch.ones(1).bool())


class TestMimickingLoss:
    def test_averages_the_squared_difference(self) -> None:
        # (1 + 4 + 0 + 9) / 4
        student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [3.0, 1.0]])
        student.requires_grad_()
        loss = mimicking_loss(student, teacher)
        loss.backward()
        assert loss.item() == 3.5
        assert student.grad.tolist() == [[-0.5, 1.0], [0.0, 1.5]]

    def test_averages_over_the_rows_that_count(self) -> None:
        # (0 + 9) / 2
        student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[2.0, 0.0], [3.0, 1.0]])
        student.requires_grad_()
        loss = mimicking_loss(student, teacher, torch.tensor([False, True]))
        loss.backward()
        assert loss.item() == 4.5
        assert student.grad.tolist() == [[0.0, 0.0], [0.0, 3.0]]

    @PROPERTY
    @given(SEEDS, st.integers(1, 6), st.integers(1, 5))
    def test_with_a_mask_is_that_of_those_rows_alone(self, seed: int, m: int, d: int) -> None:
        student, teacher, mask = normal(seed, m, d), normal(seed + 1, m, d), drawn_mask(seed, m)
        expected = mimicking_loss(student[mask], teacher[mask])
        assert mimicking_loss(student, teacher, mask).item() == pytest.approx(expected.item(), rel=1e-5)

    @pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
    @pytest.mark.parametrize("side", ["student", "teacher", "both"])
    def test_lets_nothing_through_from_rows_that_do_not_count(self, content: float, side: str) -> None:
        student, teacher = torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0], [5.0]])
        if side != "teacher":
            student[1] = content
        if side != "student":
            teacher[1] = content
        student.requires_grad_()
        loss = mimicking_loss(student, teacher, torch.tensor([True, False]))
        loss.backward()
        assert loss.item() == 4.0
        assert student.grad.tolist() == [[-4.0], [0.0]]

    @pytest.mark.parametrize(("rows", "mask"), [(3, torch.zeros(3, dtype=torch.bool)), (0, None)])
    def test_without_rows_is_zero_in_the_students_graph(self, rows: int, mask: Tensor | None) -> None:
        student = torch.full((rows, 5), math.nan, requires_grad=True)
        loss = mimicking_loss(student, torch.zeros(rows, 5), mask)
        loss.backward()
        assert loss.item() == 0.0
        assert torch.equal(student.grad, torch.zeros(rows, 5))

    @pytest.mark.parametrize("masked", [False, True])
    def test_has_the_gradient_of_finite_differences(self, masked: bool) -> None:
        student, teacher = normal(0, 6, 3).double().requires_grad_(), normal(1, 6, 3).double()
        mask = drawn_mask(4, 6) if masked else None
        assert torch.autograd.gradcheck(lambda s: mimicking_loss(s, teacher, mask), (student,))

    def test_gives_the_teacher_no_gradient(self) -> None:
        student, teacher = normal(0, 6, 3).requires_grad_(), normal(1, 6, 3).requires_grad_()
        mimicking_loss(student, teacher).backward()
        assert teacher.grad is None
        assert student.grad.abs().sum() > 0

    @pytest.mark.parametrize("dtype", HALF)
    def test_of_half_precision_is_in_float32(self, dtype: torch.dtype) -> None:
        # 400^2 is over float16's 65504.
        student = torch.full((2, 3), -200.0, dtype=dtype)
        loss = mimicking_loss(student, -student)
        assert loss.dtype == torch.float32
        assert loss.item() == 160000.0

    def test_refuses_shapes_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="must have one shape"):
            mimicking_loss(torch.zeros(4, 3), torch.zeros(1, 3))
        with pytest.raises(ValueError, match=r"mask \(4, 1\) must be \(4,\)"):
            mimicking_loss(torch.zeros(4, 3), torch.zeros(4, 3), torch.ones(4, 1).bool())


class TestNeighbourhoods:
    def test_of_one_position_are_the_features(self) -> None:
        # Two images of two channels, H 1, W 2: rows n, y, x.
        features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[5.0, 6.0]], [[7.0, 8.0]]]])
        assert neighbourhoods(features, 1).tolist() == [[1, 3], [2, 4], [5, 7], [6, 8]]

    def test_are_zero_beyond_the_border(self) -> None:
        features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        assert neighbourhoods(features, 3).tolist() == [
            [0, 0, 0, 0, 1, 2, 0, 3, 4],
            [0, 0, 0, 1, 2, 0, 3, 4, 0],
            [0, 1, 2, 0, 3, 4, 0, 0, 0],
            [1, 2, 0, 3, 4, 0, 0, 0, 0],
        ]

    @PROPERTY
    @given(
        SEEDS,
        st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
        st.sampled_from([1, 3, 5]),
    )
    def test_are_what_is_worked_out_element_by_element(
        self, seed: int, shape: tuple[int, int, int, int], kernel: int
    ) -> None:
        features = normal(seed, *shape)
        n, c, h, w = shape
        reach = range(-(kernel // 2), kernel // 2 + 1)
        expected = [
            [
                features[i, j, y + dy, x + dx].item() if 0 <= y + dy < h and 0 <= x + dx < w else 0.0
                for j in range(c)
                for dy in reach
                for dx in reach
            ]
            for i in range(n)
            for y in range(h)
            for x in range(w)
        ]
        assert neighbourhoods(features, kernel).tolist() == expected

    @pytest.mark.parametrize("kernel", [1, 3])
    def test_projected_are_a_convolution(self, kernel: int) -> None:
        features, weight = normal(0, 2, 3, 4, 5), normal(1, 6, 3 * kernel * kernel)
        convolved = torch.nn.functional.conv2d(
            features, weight.reshape(6, 3, kernel, kernel), padding=kernel // 2
        )
        projected = neighbourhoods(features, kernel) @ weight.T
        torch.testing.assert_close(projected, convolved.permute(0, 2, 3, 1).reshape(-1, 6))

    @pytest.mark.parametrize("kernel", [1, 3])
    @pytest.mark.parametrize("dtype", [*HALF, torch.float64])
    def test_keep_the_dtype_and_the_graph(self, kernel: int, dtype: torch.dtype) -> None:
        features = torch.ones(1, 2, 3, 3, dtype=dtype).requires_grad_()
        rows = neighbourhoods(features, kernel)
        rows.sum().backward()
        assert rows.dtype == dtype
        # The corners of the map are in four neighbourhoods, its middle in nine.
        expected = [[4, 6, 4], [6, 9, 6], [4, 6, 4]] if kernel == 3 else [[1] * 3] * 3
        assert features.grad.tolist() == [[expected, expected]]

    @pytest.mark.parametrize(("shape", "kernel"), [((3, 4, 5), 3), ((2, 3, 4, 5), 2), ((2, 3, 4, 5), -1)])
    def test_refuse_other_features_and_kernels(self, shape: tuple[int, ...], kernel: int) -> None:
        with pytest.raises(ValueError, match="an odd kernel, got"):
            neighbourhoods(torch.zeros(shape), kernel)


def test_products_in_bfloat16_change_less_than_other_directions_would():
    """With 4096 hashes of neighbourhoods of 64 channels after a ReLU."""
    teacher = normal(0, 64, 576).relu()
    found = []
    for seed, low in ((0, None), (0, torch.bfloat16), (1, None)):
        student = (teacher + normal(1, 64, 576).relu()).requires_grad_()
        weight = projection(4096, 576, 576**-0.5, seed)
        loss = hashing_loss(student, teacher, weight, torch.zeros(4096), product_dtype=low)
        loss.backward()
        found.append((loss.item(), student.grad))
    (exact, gradient), (rounded, of_rounded), (_, of_others) = found
    assert rounded == pytest.approx(exact, rel=1e-3)
    assert (of_rounded - gradient).norm() < 0.05 * gradient.norm()
    assert (of_others - gradient).norm() > 0.3 * gradient.norm()


def test_what_products_are_computed_in():
    cpu = torch.device("cpu")
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        assert fast_product_dtype(dtype, cpu) == dtype
    has_avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
    assert fast_product_dtype(torch.float32, cpu) == (torch.bfloat16 if has_avx512 else torch.float32)
