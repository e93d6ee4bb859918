"""Check that the predictions of two heads mean the same, row by row, so that they can be compared."""

from __future__ import annotations

import textwrap

from mgd_det.errors import ConfigError

from .base import BoxMeaning, HeadInfo

# Fields of `BoxMeaning`, and how an error message names them: what each row predicts for, and how its box is
# written.
ROW_FIELDS = {"anchors": "anchors are", "anchor_offset": "anchors' offset is"}
OUTPUT_FIELDS = {"columns": "box outputs are", "coding": "box coding is"}


def check_predictions(method: str, student: HeadInfo, teacher: HeadInfo) -> None:
    """Check that each row of the two heads' class scores stands for the same anchor, point or proposal.

    Args:
        method: name of the method that compares them, for the message.
        student, teacher: of the two heads.

    Raises:
        ConfigError: their kinds, classes or anchors differ.
    """
    remedy = f'Choose a teacher that predicts the same, or leave "{method}" out of DISTILL.METHODS.'
    if (student.kind, student.softmax) != (teacher.kind, teacher.softmax):
        problem = f"the student predicts {_described(student)}, and the teacher {_described(teacher)}"
        raise ConfigError("DISTILL.METHODS", method, problem, remedy)
    if student.num_classes != teacher.num_classes:
        raise ConfigError(
            "DISTILL.METHODS",
            method,
            f"the student has {student.num_classes} classes (NUM_CLASSES of its MODEL keys, "
            "`num_classes` of a LazyConfig), and the "
            f"teacher {teacher.num_classes}",
            remedy,
        )
    _check_fields(method, student.boxes, teacher.boxes, ROW_FIELDS, "")


def check_box_outputs(method: str, student: HeadInfo, teacher: HeadInfo, other: str) -> None:
    """Check that the same numbers stand for the same boxes.

    Args:
        method, student, teacher: as in :func:`check_predictions`.
        other: another way out, for the message.

    Raises:
        ConfigError: the box outputs of the two heads differ in number or coding.
    """
    _check_fields(method, student.boxes, teacher.boxes, OUTPUT_FIELDS, f", or {other}")


def _check_fields(
    method: str, student: BoxMeaning, teacher: BoxMeaning, fields: dict[str, str], other: str
) -> None:
    for field, words in fields.items():
        meanings = [getattr(boxes, field) for boxes in (student, teacher)]
        if meanings[0] != meanings[1]:
            ours, theirs = (textwrap.shorten(str(x), 100) for x in meanings)
            raise ConfigError(
                "DISTILL.METHODS",
                method,
                f"the student's {words} {ours}, the teacher's {theirs}",
                "Give both the same MODEL.ANCHOR_GENERATOR, BBOX_REG_WEIGHTS and CLS_AGNOSTIC_BBOX_REG, or "
                f"what a LazyConfig has for them{other}.",
            )


def _described(head: HeadInfo) -> str:
    return f"{head.kind} by {'softmax' if head.softmax else 'sigmoid'}"
