"""The kernels of the pooled loss give one result, whatever the memory layout, dtypes and device."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.device import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det.maths.kernels import eager, pooled_difference, triton_kernel
from mgd_det.maths.losses import partial_l2
from mgd_det.maths.matching import group_members
from mgd_det.maths.reducers import absolute_max

ROOT = Path(__file__).resolve().parents[2]
PROPERTY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
TYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


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


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
# a single position, a wide plane, a large plane, many channels
@pytest.mark.parametrize("size", [(1, 3, 1, 1), (2, 3, 2, 700), (1, 2, 40, 30), (1, 520, 2, 3)], ids=str)
def test_gives_what_the_method_defines(
    types: tuple[torch.dtype, torch.dtype], masked: bool, size: tuple[int, int, int, int]
) -> None:
    n, c, h, w = size
    student, teacher = normal(0, n, c, h, w).to(types[0]), normal(1, n, 2 * c + 1, h, w).to(types[1])
    groups = torch.randperm(2 * c, generator=torch.Generator().manual_seed(2)).reshape(c, 2).to(DEVICE)
    groups[0, 1] = -1
    margin = -normal(3, c).abs().to(types[0])
    mask = normal(4, n, 1, h, w) > 0 if masked else None
    wanted = expected(student, teacher, groups, margin, mask)
    for layout in (torch.contiguous_format, torch.channels_last):
        for side in ("both", "teacher"):
            s = student.contiguous(memory_format=layout) if side == "both" else student
            t = teacher.contiguous(memory_format=layout)
            arguments = (s, t, group_members(groups), margin, mask)
            both_close(pooled_difference(*arguments, True), wanted)
            total, nothing = pooled_difference(*arguments, False)
            assert nothing is None
            both_close((total, None), wanted[:1])


@PROPERTY
@given(st.data())
def test_takes_any_strides(data: st.DataObject) -> None:
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
    groups = torch.tensor(data.draw(st.permutations(range(c * group))), device=DEVICE).reshape(c, group)
    margin = (normal(seeds, c) * 4).round() / 4
    mask = normal(seeds, n, 1, h, w) > 0 if data.draw(st.booleans()) else None
    total, difference = pooled_difference(student, teacher, groups, margin, mask, True)
    wanted = expected(student, teacher, groups, margin, mask)
    assert torch.equal(total, wanted[0])
    assert torch.equal(difference, wanted[1])


def test_a_nan_or_infinity_counts_where_the_mask_is_and_nowhere_else() -> None:
    groups, margin = torch.tensor([[0, 1]], device=DEVICE), torch.tensor([-1.0], device=DEVICE)
    for bad in (float("nan"), float("inf")):
        teacher = torch.tensor([[1.0, bad, 1.0], [2.0, 0.5, 2.0]], device=DEVICE).reshape(1, 2, 1, 3)
        student = torch.tensor([0.0, 0.0, bad], device=DEVICE).reshape(1, 1, 1, 3)
        mask = torch.tensor([True, False, False], device=DEVICE).reshape(1, 1, 1, 3)
        total, difference = pooled_difference(student, teacher, groups, margin, mask, True)
        assert total.item() == 4.0  # (0 - 2)^2
        assert difference.flatten().tolist() == [-2.0, 0.0, 0.0]
        for position in (1, 2):
            mask = torch.arange(3, device=DEVICE).reshape(1, 1, 1, 3) == position
            total, _ = pooled_difference(student, teacher, groups, margin, mask, True)
            assert not total.isfinite()


@pytest.mark.parametrize("first, distance", [(-3.0, 8.0), (3.0, 2.0)])
def test_a_tie_goes_to_the_first_member(first: float, distance: float) -> None:
    teacher = torch.tensor([first, -first]).reshape(1, 2, 1, 1)
    student, groups, margin = torch.full((1, 1, 1, 1), 5.0), torch.tensor([[0, 1]]), torch.tensor([-5.0])
    teacher, student, groups, margin = (x.to(DEVICE) for x in (teacher, student, groups, margin))
    _, difference = pooled_difference(student, teacher, groups, margin, None, True)
    assert difference.item() == distance  # 5 - first


@pytest.mark.skipif(DEVICE.type == "cpu", reason="it takes a GPU's memory and speed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_at_the_size_of_training_it_is_what_plain_torch_gives(dtype, layout) -> None:
    """The size of the figures in docs/performance.md, with groups of four and half of the images padded."""
    shapes = (16, 64, 200, 304), (16, 256, 200, 304)
    generator = torch.Generator(DEVICE).manual_seed(0)
    student, teacher = (
        torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype).to(memory_format=layout)
        for shape in shapes
    )
    groups = torch.randperm(256, generator=torch.Generator().manual_seed(1)).reshape(64, 4).to(DEVICE)
    margin, mask = (
        -torch.ones(64, device=DEVICE),
        torch.ones(16, 1, 200, 304, dtype=torch.bool, device=DEVICE),
    )
    mask[8:, :, 150:] = False
    arguments = (student.float(), teacher, groups, margin, mask, True)
    total, difference = pooled_difference(*arguments)
    wanted, expected = eager.pooled_difference(*arguments)
    assert torch.equal(difference, expected)
    torch.testing.assert_close(total, wanted, rtol=1e-5, atol=0)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="there plain torch is all there is")
def test_on_a_gpu_it_is_the_kernel_and_no_fallback() -> None:
    for teacher in (torch.float32, torch.float16, torch.bfloat16):
        assert triton_kernel(torch.float32, teacher) is not None


INTERPRETED = """
import torch
from mgd_det.maths.kernels import check, cuda
for student in (torch.float32, torch.float64):
    for teacher in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        assert cuda.supports(student, teacher)
        check(cuda.pooled_difference, "cpu", student, teacher)
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
