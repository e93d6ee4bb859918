#!/usr/bin/env python
"""Write docs/configuration.md: every key this project adds, from the comments in mgd_det/config/keys.py."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from _checkout import ROOT
from commandline import argument_parser

SOURCE, DOCUMENT = ROOT / "mgd_det/config/keys.py", ROOT / "docs/configuration.md"

HEAD = """# Configuration

The keys that Matching Guided Distillation (MGD) and its neighbours add to a Detectron2 config, with their
defaults. Every other `MODEL.*`, `INPUT.*` and `SOLVER.*` key describes the student, as in stock Detectron2.
Any of them can be set in a config file, or behind a command as `KEY VALUE`.

This page is made by `tools/config_reference.py` from the comments in `mgd_det/config/keys.py`.
"""

ASSIGNMENT = re.compile(r"    cfg\.([A-Z0-9_.]+) = (.+)")
COMMENT = re.compile(r"    # (.*)")


class Entry(NamedTuple):
    """A key, or a section of keys."""

    key: str
    default: str  # empty for a section
    comment: str


def main(argv: Sequence[str]) -> int:
    examples = "examples:\n  tools/config_reference.py\n  tools/config_reference.py --check"
    parser = argument_parser(__doc__, examples)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if the page is out of date"
    )
    args = parser.parse_args(argv)
    text = document(read_entries(SOURCE.read_text(encoding="utf-8")))
    if not args.check:
        DOCUMENT.write_text(text, encoding="utf-8")
        return 0
    if DOCUMENT.read_text(encoding="utf-8") == text:
        return 0
    sys.stderr.write(f"{DOCUMENT.relative_to(ROOT)} is out of date: run tools/config_reference.py\n")
    return 1


def read_entries(source: str) -> list[Entry]:
    """The keys that add_mgd_config sets, in its order, each with the comment before it.

    Raises:
        ValueError: a key has no comment.
    """
    entries: list[Entry] = []
    comment: list[str] = []
    for line in source.splitlines():
        said, assigned = COMMENT.fullmatch(line), ASSIGNMENT.fullmatch(line)
        if said:
            comment.append(said[1])
        elif assigned:
            key, default = assigned[1], "" if assigned[2] == "CfgNode()" else assigned[2]
            if default and not comment:
                raise ValueError(f"{key} has no comment")
            entries.append(Entry(key, default, " ".join(comment)))
            comment = []
        else:
            comment = []
    return entries


def document(entries: Sequence[Entry]) -> str:
    """docs/configuration.md: a table for each section."""
    sections: dict[str, list[Entry]] = {"Detectron2's sections": []}
    for entry in entries:
        if not entry.default:
            sections[entry.key] = [entry]
            continue
        section = entry.key.rpartition(".")[0]
        sections[section if section in sections else "Detectron2's sections"].append(entry)
    return "\n".join([HEAD, *(section_text(name, found) for name, found in sections.items())])


def section_text(name: str, entries: Sequence[Entry]) -> str:
    heading = f"## `{name}`" if entries and not entries[0].default else f"## Keys in {name}"
    about = [entry.comment for entry in entries if not entry.default and entry.comment]
    rows = [f"| `{e.key}` | `{shown(e.default)}` | {e.comment} |" for e in entries if e.default]
    return "\n".join(
        [heading, "", *(f"{text}\n" for text in about), "| key | default | |", "|---|---|---|", *rows, ""]
    )


def shown(default: str) -> str:
    """A default as it is written in a config file."""
    value = ast.literal_eval(default)
    return str(value) if isinstance(value, bool) else json.dumps(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
