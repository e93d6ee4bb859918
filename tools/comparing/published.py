"""Figures that others have published, beside those of the arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from comparing.cells import cell, number
from comparing.summary import Row
from comparing.tables import check_table

from mgd_det.errors import ConfigError

KEYS: dict[str, type] = {"AP": float, "source": str, "differs": str}


class Published(NamedTuple):
    """A figure of somebody else's."""

    AP: float
    source: str  # who has measured it
    differs: str  # in which settings from the arm


def read_published(where: str, entries: Sequence[Any]) -> list[Published]:
    """Returns the entries under `published` of an arm.

    Args:
        where: what goes before "published" in errors.
        entries: as they were read.

    Raises:
        ConfigError: a key or a value cannot be used.
    """
    for entry in entries:
        if not isinstance(entry, dict):
            remedy = "Give [{AP: ..., source: ..., differs: ...}, ...]."
            raise ConfigError(f"{where}published", entry, "not a table", remedy)
        check_table(f"{where}published: ", entry, KEYS, required=list(KEYS))
    return [Published(**entry) for entry in entries]


def published_lines(
    rows: Sequence[Row], names: Mapping[str, str], published: Mapping[str, Sequence[Published]]
) -> list[str]:
    """Returns an empty line and a markdown table of the published figures; nothing without any."""
    lines = []
    for row in rows:
        for figure in published.get(row.arm, ()):
            cells = [cell(names[row.arm]), number(row.ap, ".2f"), number(figure.AP, ".2f")]
            lines.append(f"| {' | '.join([*cells, cell(figure.source), cell(figure.differs)])} |")
    if not lines:
        return []
    head = "| arm | AP here | AP of others, by their own account | source | what differs there |"
    return ["", head, "|---|---:|---:|---|---|", *lines]
