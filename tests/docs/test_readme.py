"""What the README says is so: its figures, its files, its snippets."""

from __future__ import annotations

import json
import re

from detectron2.config import CfgNode, get_cfg
from helpers.commands import ROOT, run_tool

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


def interval(row: dict) -> str:
    low, high = row["difference"] - row["half_width"], row["difference"] + row["half_width"]
    return f"{row['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def test_the_table_of_methods_holds_the_committed_figures():
    arms = {
        "student alone": "baseline",
        "`mgd`": "mgd",
        "`mgd` with a random assignment": "mgd, random assignment",
        "`imitation`, FPN and head inherited": "imitation + inherit",
        "the same, its levels weighted evenly": "balanced imitation + inherit",
    }
    report = json.loads((ROOT / "results/confirmation/report.json").read_text())
    rows = {row["arm"]: row for row in report["arms"]}
    section = README.split("<!-- results/confirmation/report.json -->")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (\S.*?) \| (\d+) \| ([\d.]+) \| (.*?) ?\|$", section, re.M)
    assert [title for title, *_ in lines] == list(arms)
    for title, seeds, ap, gained in lines:
        row = rows[arms[title]]
        assert (int(seeds), ap) == (row["n"], f"{row['ap']:.1f}"), title
        assert gained == ("" if row["difference"] is None else interval(row)), title
    assert len(report["pairs"]) == 2
    from_trained = json.loads((ROOT / "results/matching/report.json").read_text())["pairs"][0]
    assert from_trained["other"] == "mgd, random assignment"
    longer = json.loads((ROOT / "results/longer/report.json").read_text())["arms"]
    followed = [arm for arm in longer if arm["half_width"] is not None]
    assert len(followed) == 2
    for pair in (*report["pairs"], from_trained, *followed):
        assert interval(pair) in section, pair["arm"]


def test_files_it_names_exist():
    linked = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    configs = re.findall(r"configs/[\w/]+\.yaml", README)
    tools = re.findall(r"tools/\w+\.py", README)
    assert len(linked) >= 4
    for name in {*linked, *configs, *tools}:
        assert (ROOT / name).exists(), name


def test_keys_it_names_exist():
    cfg = load_config(str(ROOT / "configs/retinanet_r18_mgd.yaml"))
    cfg.DISTILL.ATTENTION = CfgNode({"TAPS": [], "WEIGHT": 1.0})  # of the README's own method
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


def test_the_method_of_ones_own_trains(mgd_cfg, tmp_path):
    """The README's class and its script, as they stand there."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    (method,) = (block for block in blocks if "register_method(" in block)
    (script,) = (block for block in blocks if "import attention" in block)
    assert len(method.splitlines()) < 30
    (tmp_path / "attention.py").write_text(method)
    (tmp_path / "train.py").write_text(script)
    mgd_cfg.SOLVER.MAX_ITER, mgd_cfg.DATASETS.TEST = 2, ()
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    run_tool(
        *(tmp_path / "train.py", "--config-file", tmp_path / "run.yaml", "--num-gpus", 0),
        *("DISTILL.METHODS", '["attention", "mgd"]', "DISTILL.ATTENTION.WEIGHT", 0.5),
    )
    metrics = {}
    for line in (tmp_path / "run/metrics.json").read_text().splitlines():
        metrics.update(json.loads(line))
    assert 0 < metrics["loss_attention_res4"] < 1
    assert metrics["attention_res5/weight"] == 0.5
    assert metrics["loss_mgd_res3"] > 0
