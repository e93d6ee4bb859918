"""What the README says is so: its figures, its files, its snippets."""

from __future__ import annotations

import json
import re

from conftest import ROOT
from detectron2.config import get_cfg

import mgd_det
from mgd_det.config import load_config

README = (ROOT / "README.md").read_text()


def test_the_table_holds_the_committed_figures():
    results = json.loads((ROOT / "results/demo.json").read_text())["results"]
    rows = re.findall(
        r"^\| (?:teacher|student) R-.*\| ([\d.]+) \| ([\d.]+) \| (\d+):(\d\d) \|$", README, re.M
    )
    figures = [(float(ap), float(ap50), 60 * int(m) + int(s)) for ap, ap50, m, s in rows]
    assert figures == [
        (round(r["AP"], 1), round(r["AP50"], 1), round(r["seconds"])) for r in results.values()
    ]


def test_files_it_names_exist():
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    configs = re.findall(r"configs/[\w/]+\.yaml", README)
    tools = re.findall(r"tools/\w+\.py", README)
    assert len(linked) >= 4
    for name in {*linked, *configs, *tools}:
        assert (ROOT / name).exists(), name


def test_keys_it_names_exist():
    cfg = load_config(str(ROOT / "configs/retinanet_r18_mgd.yaml"))
    for key in set(re.findall(r"\b(?:DISTILL|MODEL|SOLVER|DATASETS)(?:\.[A-Z_0-9]+)+", README)):
        node = cfg
        for part in key.split(".")[1:] if key.startswith("cfg.") else key.split("."):
            assert part in node, key
            node = node[part]


def test_the_plug_in_snippet_configures_a_distiller():
    """Up to the trainer, which is the user's own."""
    snippet = README.split("```python\n")[1].split("\ntrainer =")[0]
    snippet = snippet.replace('cfg.merge_from_file("your_student.yaml")\n', "")
    scope = {"get_cfg": get_cfg}
    exec(snippet, scope)
    assert scope["cfg"].MODEL.META_ARCHITECTURE == "DistilledDetector"
    assert scope["RematchHook"] is mgd_det.RematchHook
    assert "RematchHook(cfg)" in README
