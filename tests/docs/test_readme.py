"""The README's table of methods and its snippet; and the demonstration's table."""

from __future__ import annotations

import json
import re
from argparse import Namespace

from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import RetinaNet
from helpers.commands import ROOT

import mgd_det
from mgd_det.config import student_config

README = (ROOT / "README.md").read_text()
DEMO = (ROOT / "docs/demo.md").read_text()


def test_it_is_short():
    assert len(README.splitlines()) <= 150


def test_the_demonstrations_table_holds_the_committed_figures():
    results = json.loads((ROOT / "results/demo.json").read_text())["results"]
    rows = re.findall(r"^\| (?:teacher|student) R-.*\| ([\d.]+) \| ([\d.]+) \| (.*) \|$", DEMO, re.M)
    times = [divmod(round(r["seconds"]), 60) if "seconds" in r else None for r in results.values()]
    assert rows == [
        (f"{r['AP']:.1f}", f"{r['AP50']:.1f}", f"{time[0]}:{time[1]:02d}" if time else "trained before")
        for r, time in zip(results.values(), times)
    ]


def gained(row: dict) -> str:
    """The difference to another arm with its interval, which a single seed has not."""
    difference = f"{row['difference']:+.1f}"
    if row["half_width"] is None:
        return difference
    low, high = row["difference"] - row["half_width"], row["difference"] + row["half_width"]
    return f"{difference} ({low:+.1f} to {high:+.1f})"


def cell(row: dict | None) -> str:
    """An arm in the README's table: empty if it was not run; the baseline has no difference."""
    if row is None or not row["n"]:
        return ""
    return f"{row['ap']:.1f}" + ("" if row["difference"] is None else f", {gained(row)}")


def report_of(stage: str) -> dict:
    return json.loads((ROOT / "results" / stage / "report.json").read_text())


def test_the_table_of_methods_holds_the_committed_figures():
    arms = {
        "student alone": "student alone",
        "student alone, twice as long": "student alone, twice as long",
        "FPN and head inherited": "inherit",
        "`mgd`": "mgd",
        "`mgd` with a random assignment": "mgd, random assignment",
        "`mgd` at the FPN": "mgd at p3 to p5",
        "`imitation`, FPN and head inherited": "imitation + inherit",
        "`pkd`, FPN and head inherited": "pkd + inherit",
        "the same, and images without labels": "pkd + inherit, images without labels",
    }
    reports = [report_of(name) for name in ("shapes", "animal_pose", "bccd")]
    rows = [{row["arm"]: row for row in report["arms"]} for report in reports]
    section = README.split("<!-- results/*/report.json -->")[1].split("\n## ")[0]
    table = [line[2:-2].split(" | ") for line in section.splitlines() if line.startswith("| ")]
    assert [title for title, *_ in table[1:]] == list(arms)
    for title, *cells in table[1:]:
        assert [text.strip() for text in cells] == [cell(of.get(arms[title])) for of in rows], title
    pairs = {(pair["arm"], pair["other"]): pair for pair in reports[0]["pairs"]}
    from_trained = report_of("matching")["pairs"][0]
    assert from_trained["other"] == "mgd, random assignment"
    for pair in (pairs["mgd", "mgd, random assignment"], from_trained):
        assert gained(pair) in section, pair["arm"]
    early = {row["arm"]: row for row in report_of("confirmation")["arms"]}
    assert f"{early['balanced imitation + inherit']['difference']:+.1f} AP" in section
    assert f"{report_of('longer')['arms'][0]['ap']:.1f} AP" in section


def test_the_plug_in_snippet_trains(mgd_cfg, tmp_path):
    """With a stock trainer for the user's, a small student's file, and a teacher that is here."""
    stock, teacher = student_config(mgd_cfg), mgd_cfg.DISTILL.TEACHER
    stock.SOLVER.MAX_ITER, stock.DATASETS.TEST = 2, ()
    (tmp_path / "your_student.yaml").write_text(stock.dump())
    snippet = README.split("```python\n")[1].split("```")[0]
    snippet = snippet.replace("your_student.yaml", str(tmp_path / "your_student.yaml"))
    snippet = snippet.replace(
        '"COCO-Detection/retinanet_R_50_FPN_3x.yaml"\n',
        f'"{teacher.CONFIG_FILE}"\ncfg.DISTILL.TEACHER.WEIGHTS = "{teacher.WEIGHTS}"\n'
        "cfg.DISTILL.MATCHING.NUM_IMAGES = 4\n",
    )
    mgd_det.register_datasets(mgd_cfg)
    scope = {"get_cfg": get_cfg, "YourTrainer": DefaultTrainer, "args": Namespace(resume=False)}
    exec(snippet, scope)
    assert type(mgd_det.student_of(scope["trainer"].model)) is RetinaNet
    assert "loss_mgd_res4" in (tmp_path / "run/metrics.json").read_text()
