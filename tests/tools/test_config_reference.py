"""docs/configuration.md is what the comments of the config say."""

from __future__ import annotations

import config_reference as tool
import pytest
from helpers.commands import ROOT, run_tool

SOURCE = """
def add(cfg):
    # Of a stock section.
    cfg.SOLVER.KIND = "a"

    # What the losses are.
    cfg.DISTILL = CfgNode()
    # One, or
    # the other.
    cfg.DISTILL.FLAG = True
    cfg.DISTILL.DEEP = CfgNode()
    # A list.
    cfg.DISTILL.DEEP.LIST = ["x", 1]
"""


def test_reads_every_key_with_its_comment():
    assert tool.read_entries(SOURCE) == [
        ("SOLVER.KIND", '"a"', "Of a stock section."),
        ("DISTILL", "", "What the losses are."),
        ("DISTILL.FLAG", "True", "One, or the other."),
        ("DISTILL.DEEP", "", ""),
        ("DISTILL.DEEP.LIST", '["x", 1]', "A list."),
    ]


def test_writes_a_table_for_each_section():
    text = tool.document(tool.read_entries(SOURCE))
    assert (
        '## Keys in Detectron2\'s sections\n\n| key | default | |\n|---|---|---|\n| `SOLVER.KIND` | `"a"` |'
        in text
    )
    assert "## `DISTILL`\n\nWhat the losses are.\n\n| key" in text
    assert "| `DISTILL.FLAG` | `True` | One, or the other. |" in text
    assert (
        '## `DISTILL.DEEP`\n\n| key | default | |\n|---|---|---|\n| `DISTILL.DEEP.LIST` | `["x", 1]` |'
        in text
    )


def test_a_key_without_a_comment_is_an_error():
    with pytest.raises(ValueError, match=r"DISTILL\.FLAG has no comment"):
        tool.read_entries("    cfg.DISTILL.FLAG = True")


def test_the_page_is_up_to_date():
    run_tool(ROOT / "tools/config_reference.py", "--check")
