"""The code of docs/extending.md, as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from detectron2.config import CfgNode
from helpers.commands import ROOT, run_tool

from mgd_det.errors import ConfigError
from mgd_det.methods import TapFeatures

SHORT_METHOD, SHORT_SCRIPT, METHOD, REDUCER = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/extending.md").read_text(encoding="utf-8"), re.S
)

SCRIPT = """
import direction
import mean_reducer
from mgd_det.run import argument_parser, main

if __name__ == "__main__":
    main(argument_parser("").parse_args())
"""


@pytest.fixture
def method():
    """The page's method for one tap of two channels, without an entry in the table of methods."""
    scope: dict = {}
    exec(re.sub(r"@register_method.*\n", "", METHOD), scope)
    return scope["Direction"]({"p3": (2, 2)}, weight=3.0, margin=0.1)


def loss(method, student, teacher, mask=None) -> float:
    """Of vectors of two channels, one for each position."""
    maps = [torch.tensor(x).T.reshape(1, 2, 1, -1) for x in (student, teacher)]
    mask = mask if mask is None else torch.tensor(mask).reshape(1, 1, 1, -1)
    return method({"p3": TapFeatures(*maps, mask)})["loss_direction_p3"].item()


def test_the_method_by_hand(method):
    """Cosines 0.6 and -1 are 0.3 and 1.9 short of 0.9; equal directions of other lengths are not."""
    student, teacher = [[3.0, 4.0], [0.0, 2.0], [5.0, 5.0]], [[1.0, 0.0], [0.0, -1.0], [1.0, 1.0]]
    assert loss(method, student, teacher) == pytest.approx(3 * (0.3 + 1.9) / 3)


def test_the_method_leaves_padding_out(method):
    student, teacher = [[3.0, 4.0], [7.0, 7.0]], [[1.0, 0.0], [-7.0, 7.0]]
    assert loss(method, student, teacher, [True, False]) == pytest.approx(3 * 0.3)


def test_the_methods_own_key_is_checked(method):
    cfg = CfgNode({"TAPS": ["p3"], "WEIGHT": 1.0, "MARGIN": 2.0})
    with pytest.raises(
        ConfigError, match=r"^DISTILL\.DIRECTION\.MARGIN = 2\.0: not in \[0, 2\)\. Give a number"
    ):
        type(method).from_config(cfg, dict, dict)


def test_the_reducer_by_hand():
    scope: dict = {}
    exec(REDUCER.split("REDUCERS[")[0], scope)
    teacher = torch.tensor([2.0, 4.0, -6.0]).reshape(1, 3, 1, 1)
    pooled = scope["mean"](teacher, torch.tensor([[0, 2], [1, -1]]))
    assert pooled.flatten().tolist() == [-2.0, 4.0]


def test_both_train_in_a_run(mgd_cfg, tmp_path):
    for name, text in {"direction": METHOD, "mean_reducer": REDUCER, "train": SCRIPT}.items():
        (tmp_path / f"{name}.py").write_text(text)
    mgd_cfg.SOLVER.MAX_ITER, mgd_cfg.DATASETS.TEST = 2, ()
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    command = [tmp_path / "train.py", "--config-file", tmp_path / "run.yaml", "--num-gpus", 0]
    options = ["DISTILL.METHODS", '["direction", "mgd"]', "DISTILL.MGD.REDUCER", "mean"]
    run_tool(*command, *options, "DISTILL.DIRECTION.MARGIN", 0.0)
    metrics: dict = {}
    for line in (tmp_path / "run/metrics.json").read_text().splitlines():
        metrics.update(json.loads(line))
    assert metrics["loss_direction_p4"] > 0
    assert metrics["direction_p3/gradient_ratio"] > 0
    assert metrics["loss_mgd_res3"] > 0


def test_the_short_method_and_its_script_train(mgd_cfg, tmp_path):
    assert len(SHORT_METHOD.splitlines()) < 30
    (tmp_path / "attention.py").write_text(SHORT_METHOD)
    (tmp_path / "train.py").write_text(SHORT_SCRIPT)
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


def test_a_tool_finds_the_method_and_its_own_modules(tmp_path):
    page = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
    (code,) = re.findall(r'^PYTHONPATH=tools python -c "(.*)" --run', page, re.M)
    (tmp_path / "attention.py").write_text(SHORT_METHOD)
    paths = os.pathsep.join(["tools", str(tmp_path)])
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--baseline" in done.stdout
