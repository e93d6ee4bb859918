"""The check that features of two sides can be compared element by element."""

from __future__ import annotations

from torch import Tensor


def check_one_shape(student: Tensor, other: Tensor, name: str = "teacher") -> None:
    """Raise a ValueError unless the student's features and others have one shape.

    Args:
        student: features of any shape.
        other: features that they are compared with.
        name: what the message calls those.
    """
    if student.shape != other.shape:
        shapes = f"student {tuple(student.shape)} and {name} {tuple(other.shape)}"
        raise ValueError(f"{shapes} must have one shape")
