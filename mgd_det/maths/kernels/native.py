"""The pooled difference on the CPU, in C, compiled at first use where there is a compiler (`CC`, or `cc`)."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("pooled_difference.c")
# Those two leave out what nobody looks at, errno and exception flags; infinities and NaNs keep their meaning.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
TIMEOUT_S = 20  # it takes less than half a second; a user should not wait for a broken one

STUDENTS = {torch.float32: ("float", "fabsf"), torch.float64: ("double", "fabs")}
TEACHERS = {
    torch.float32: ("float", "(x)"),
    torch.float64: ("double", "(x)"),
    torch.bfloat16: ("uint16_t", "widened(x)"),
}


class Shape(ctypes.Structure):
    """`Shape` of the C file."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("images", "channels", "group", "height", "width")),
        *((name, ctypes.c_int64 * 4) for name in ("student", "teacher", "difference")),
    ]


def supports(student: torch.dtype, teacher: torch.dtype) -> bool:
    # A wider teacher would be rounded before its channels are compared.
    return student in STUDENTS and teacher in TEACHERS and torch.promote_types(student, teacher) == student


def pooled_difference(
    student: Tensor, teacher: Tensor, members: Tensor, margin: Tensor, mask: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """As :func:`mgd_det.maths.kernels.pooled_difference`.

    Raises:
        IndexError: a member is not a teacher channel.
        RuntimeError: there is no compiler, or it fails.
    """
    library = load(student.dtype, teacher.dtype)
    n, c, h, w = student.shape
    if not 0 <= int(members.min()) <= int(members.max()) < teacher.shape[1]:  # C would read what lies beside
        raise IndexError(f"groups must hold teacher channels, 0 to {teacher.shape[1] - 1}")
    difference = torch.empty_like(student)  # where it is not wanted, only its strides are
    members, margin = members.contiguous(), margin.to(student.dtype).contiguous()
    if mask is not None:
        mask = mask.expand(n, 1, h, w).contiguous()
    planar = student.stride(3) == teacher.stride(3) == difference.stride(3) == 1
    sums = torch.empty(n * (c if planar else h), dtype=torch.float64)
    strides = ((ctypes.c_int64 * 4)(*x.stride()) for x in (student, teacher, difference))
    shape = Shape(n, c, members.shape[1], h, w, *strides)
    function = library.planar if planar else library.strided
    tensors = (student, teacher, members, margin, mask, difference if keep else None, sums)
    pointers = (ctypes.c_void_p(None if x is None else x.data_ptr()) for x in tensors)
    function(*pointers, ctypes.byref(shape), ctypes.c_int(torch.get_num_threads()))
    return sums.sum().to(student.dtype), difference if keep else None


@functools.cache
def load(student: torch.dtype, teacher: torch.dtype) -> ctypes.CDLL:
    """Compile for these types; once in a process, into a folder that is gone afterwards."""
    (kind, magnitude), (source, widening) = STUDENTS[student], TEACHERS[teacher]
    types = [f"-DS={kind}", f"-DABS={magnitude}", f"-DT={source}", f"-DLOAD(x)={widening}"]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pooled_difference.so"
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [*compiler, *FLAGS, *types, str(SOURCE), "-o", str(file), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
            return ctypes.CDLL(str(file))
        except subprocess.CalledProcessError as error:
            reason = (error.stderr.strip().splitlines() or [str(error)])[0]
            raise RuntimeError(f"{compiler[0]} failed: {reason}") from error
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(str(error)) from error
