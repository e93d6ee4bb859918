"""The implementations of the fused loss: one result, whatever memory layout, types and machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det.maths import kernels
from mgd_det.maths.kernels import eager, native
from mgd_det.maths.losses import partial_l2
from mgd_det.maths.matching import group_members
from mgd_det.maths.reducers import absolute_max

ROOT = Path(__file__).resolve().parents[2]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
CPU = {"eager": eager, "native": native}
needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc").split()[0]) is None, reason="there is no C compiler here (cc)"
)
on_cpu = pytest.mark.parametrize("name", ["eager", pytest.param("native", marks=needs_compiler)])
TYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def expected(student: Tensor, teacher: Tensor, groups: Tensor, margin: Tensor, mask: Tensor | None):
    """By the pooling and the loss that the method defines, and automatic differentiation."""
    student = student.detach().requires_grad_()
    total = partial_l2(student, absolute_max(teacher, groups), margin, "sum", mask)
    total.backward()
    return total.detach(), student.grad / 2


def both_close(found: tuple[Tensor, Tensor | None], wanted: tuple[Tensor, Tensor]) -> None:
    tolerance = 1e-12 if wanted[0].dtype == torch.float64 else 1e-6
    for one, other in zip(found, wanted):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=0)


@on_cpu
@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
# 1 x 1; wider than a block of the C file; a plane over several blocks; more than a block of channels, too
@pytest.mark.parametrize("size", [(1, 3, 1, 1), (2, 3, 2, 700), (1, 2, 40, 30), (1, 520, 2, 3)], ids=str)
def test_gives_what_the_method_defines(
    name: str, types: tuple[torch.dtype, torch.dtype], masked: bool, size: tuple[int, int, int, int]
) -> None:
    n, c, h, w = size
    student, teacher = normal(0, n, c, h, w).to(types[0]), normal(1, n, 2 * c + 1, h, w).to(types[1])
    groups = torch.randperm(2 * c, generator=torch.Generator().manual_seed(2)).reshape(c, 2)
    groups[0, 1] = -1
    margin = -normal(3, c).abs().to(types[0])
    mask = normal(4, n, 1, h, w) > 0 if masked else None
    wanted = expected(student, teacher, groups, margin, mask)
    for layout in (torch.contiguous_format, torch.channels_last):
        for side in ("both", "teacher"):
            s = student.contiguous(memory_format=layout) if side == "both" else student
            t = teacher.contiguous(memory_format=layout)
            arguments = (s, t, group_members(groups), margin, mask)
            both_close(CPU[name].pooled_difference(*arguments, True), wanted)
            total, nothing = CPU[name].pooled_difference(*arguments, False)
            assert nothing is None
            both_close((total, None), wanted[:1])


@on_cpu
@PROPERTY
@given(st.data())
def test_takes_any_strides(name: str, data: st.DataObject) -> None:
    """Cropped, transposed and interleaved views, of quarters, so that sums are exact."""
    n, c, group, h, w = (data.draw(st.integers(1, high)) for high in (2, 3, 3, 5, 6))
    seeds = data.draw(st.integers(0, 99))

    def view(seed: int, channels: int) -> Tensor:
        order = data.draw(st.permutations(range(4)))
        step, crop = data.draw(st.integers(1, 2)), data.draw(st.integers(0, 2))
        shape = [n, channels * step, h + crop, w + crop]
        values = (normal(seed, *(shape[i] for i in order)) * 4).round() / 4
        back = [order.index(i) for i in range(4)]
        return values.permute(back)[:, ::step, crop:, crop:]

    student, teacher = view(seeds, c), view(seeds + 1, c * group)
    groups = torch.tensor(data.draw(st.permutations(range(c * group)))).reshape(c, group)
    margin = (normal(seeds, c) * 4).round() / 4
    mask = normal(seeds, n, 1, h, w) > 0 if data.draw(st.booleans()) else None
    total, difference = CPU[name].pooled_difference(student, teacher, groups, margin, mask, True)
    wanted = expected(student, teacher, groups, margin, mask)
    assert torch.equal(total, wanted[0])
    assert torch.equal(difference, wanted[1])


@on_cpu
def test_a_nan_or_infinity_counts_where_the_mask_is_and_nowhere_else(name: str) -> None:
    groups, margin = torch.tensor([[0, 1]]), torch.tensor([-1.0])
    for bad in (float("nan"), float("inf")):
        teacher = torch.tensor([[1.0, bad, 1.0], [2.0, 0.5, 2.0]]).reshape(1, 2, 1, 3)
        student = torch.tensor([0.0, 0.0, bad]).reshape(1, 1, 1, 3)
        mask = torch.tensor([True, False, False]).reshape(1, 1, 1, 3)
        total, difference = CPU[name].pooled_difference(student, teacher, groups, margin, mask, True)
        assert total.item() == 4.0  # (0 - 2)^2
        assert difference.flatten().tolist() == [-2.0, 0.0, 0.0]
        for position in (1, 2):
            mask = torch.arange(3).reshape(1, 1, 1, 3) == position
            total, _ = CPU[name].pooled_difference(student, teacher, groups, margin, mask, True)
            assert not total.isfinite()


@on_cpu
@pytest.mark.parametrize("first, distance", [(-3.0, 8.0), (3.0, 2.0)])
def test_a_tie_goes_to_the_first_member(name: str, first: float, distance: float) -> None:
    teacher = torch.tensor([first, -first]).reshape(1, 2, 1, 1)
    student, groups, margin = torch.full((1, 1, 1, 1), 5.0), torch.tensor([[0, 1]]), torch.tensor([-5.0])
    _, difference = CPU[name].pooled_difference(student, teacher, groups, margin, None, True)
    assert difference.item() == distance  # 5 - first


@needs_compiler
def test_native_gives_the_same_bits_on_any_number_of_threads() -> None:
    student, teacher = normal(0, 2, 5, 30, 41), normal(1, 2, 20, 30, 41)
    groups, margin = torch.arange(20).reshape(5, 4), -torch.ones(5)
    threads, totals = torch.get_num_threads(), []
    for layout in (torch.contiguous_format, torch.channels_last):
        found = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            s, t = (x.contiguous(memory_format=layout) for x in (student, teacher))
            found.add(native.pooled_difference(s, t, groups, margin, None, True)[0].item())
        totals.append(found)
    torch.set_num_threads(threads)
    assert [len(found) for found in totals] == [1, 1]


@needs_compiler
@pytest.mark.parametrize("member", [-1, 4])
def test_native_refuses_channels_that_the_teacher_has_not(member: int) -> None:
    with pytest.raises(IndexError, match="0 to 3"):
        native.pooled_difference(
            normal(0, 1, 1, 2, 2), normal(1, 1, 4, 2, 2), torch.tensor([[member]]), torch.zeros(1), None, True
        )


@needs_compiler
def test_training_uses_the_compiled_one_where_there_is_a_compiler() -> None:
    assert kernels.fused("cpu", torch.float32, torch.float32) is native
    assert kernels.fused("cpu", torch.float32, torch.float16) is None  # not written for it
    assert kernels.fused("xla", torch.float32, torch.float32) is None


LOSS = """
import logging, torch
logging.basicConfig(format="%(levelname)s %(message)s")
from mgd_det.losses import pooled_partial_l2
student = torch.tensor([[1.0, 0.0], [-0.25, -1.0]]).reshape(1, 2, 1, 2).requires_grad_()
teacher = torch.tensor([[2.0, 1.0], [-1.0, -4.0], [-0.5, -0.5]]).reshape(1, 3, 1, 2)
groups, margin = torch.tensor([[0, 1], [2, -1]]), torch.tensor([-1.0, -1.0])
for _ in range(3):
    student.grad = None
    loss = pooled_partial_l2(student, teacher, groups, margin, "sum")
    loss.backward()
    assert (loss.item(), student.grad.flatten().tolist()) == (2.0625, [-2.0, 2.0, 0.5, 0.0])
"""


@pytest.mark.parametrize(
    "compiler", ["false", "no-such-compiler", "echo"], ids=["fails", "missing", "does nothing"]
)
def test_without_a_working_compiler_torch_takes_its_place_with_one_warning(compiler: str) -> None:
    done = run(LOSS, CC=compiler)
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    assert len(warnings) == 1
    assert "plain torch takes its place" in warnings[0]


INTERPRETED = """
import torch
from mgd_det.maths.kernels import check, cuda
for student in (torch.float32, torch.float64):
    for teacher in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        assert cuda.supports(student, teacher)
        check(cuda, "cpu", student, teacher)
print("all agree")

normal = torch.Generator().manual_seed(0)
student, teacher = (torch.randn(2, c, 40, 30, generator=normal) for c in (3, 6))
groups, margin = torch.arange(6).reshape(3, 2), -torch.ones(3)
gaps = [torch.nn.functional.pad(x, (0, 2))[..., :30] for x in (student, teacher)]
for mask in (None, torch.randn(2, 1, 40, 30, generator=normal) > 0):
    for keep in (True, False):
        arguments = groups, margin, mask, keep
        dense = cuda.pooled_difference(student, teacher, *arguments)
        for s, t in (gaps, (student, gaps[1]), (gaps[0], teacher)):
            total, difference = cuda.pooled_difference(s, t, *arguments)
            assert torch.equal(total, dense[0])
            assert difference is None if not keep else torch.equal(difference, dense[1])
print("with gaps and without, the same")
"""


def test_the_cuda_one_agrees_under_tritons_interpreter() -> None:
    """Its arithmetic and addressing, without a GPU; on one, it is checked likewise before its first use."""
    pytest.importorskip("triton", reason="this build of torch has no Triton: the CPU builds do not")
    done = run(INTERPRETED, TRITON_INTERPRET="1")
    assert "all agree" in done.stdout, done.stderr
    assert "with gaps and without, the same" in done.stdout, done.stderr


def run(code: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
