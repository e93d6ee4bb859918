"""Texts in the cells of a report's tables."""

from __future__ import annotations

from comparing.summary import Row


def interval(difference: float | None, half_width: float | None) -> str:
    """Returns the ends of an interval around a difference."""
    if difference is None or half_width is None:
        return "-"
    return f"{difference - half_width:+.2f} to {difference + half_width:+.2f}"


def cell(text: str) -> str:
    """Returns a text escaped for a cell of a markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def count(row: Row) -> str:
    return str(row.n) if row.n == row.n_wanted else f"{row.n} of {row.n_wanted}"
