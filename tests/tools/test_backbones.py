"""The table of backbones, and its copy in the documents."""

from __future__ import annotations

import re

import backbones
import pytest
from helpers.commands import ROOT

TABLE = """| network | parameters | res2 | res3 | res4 | res5 |
|---|---|---|---|---|---|
| `mobilenet_v2` | 2.2 M | 24 | 32 | 96 | 1280 |
| `resnet18` | 11.2 M | 64 | 128 | 256 | 512 |
"""


def test_prints_a_row_for_each_network(capsys):
    backbones.main(["mobilenet_v2", "resnet18"])
    assert capsys.readouterr().out == TABLE


def test_a_network_without_stages_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        backbones.main(["squeezenet1_0"])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: MODEL\.TORCHVISION\.NAME = 'squeezenet1_0': .*has no stages.*\n", error)


def test_the_table_in_the_recipes_is_that_of_its_command():
    """For the small ones, which are built fast."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    names = re.search(r"^python tools/backbones\.py (.+)$", text, flags=re.MULTILINE)[1].split()
    assert re.findall(r"^\| `(\w+)` \| [\d.]+ M", text, flags=re.MULTILINE) == names
    for name in ("mobilenet_v3_small", "mnasnet0_5", "resnet18"):
        assert f"\n{backbones.row(name)}\n" in text
