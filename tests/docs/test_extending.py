"""The code of docs/extending.md, as it stands there."""

from __future__ import annotations

import json
import math
import re

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
import cwd
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
    return scope["ChannelWiseDistillation"]({"p3": (1, 1)}, weight=3.0, temperature=2.0)


def loss(method, student, teacher, mask=None) -> float:
    maps = [torch.tensor(x).reshape(1, 1, 1, -1) for x in (student, teacher)]
    mask = mask if mask is None else torch.tensor(mask).reshape(1, 1, 1, -1)
    return method({"p3": TapFeatures(*maps, mask)})["loss_cwd_p3"].item()


def test_the_method_by_hand(method):
    """Softmax of (0, 2 ln 3) / 2 is (1/4, 3/4), that of (0, 0) is (1/2, 1/2)."""
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert loss(method, [0.0, 0.0], [0.0, 2 * math.log(3)]) == pytest.approx(3 * 4 * divergence)
    assert loss(method, [5.0, 7.0], [3.0, 5.0]) == pytest.approx(0, abs=1e-6)  # a shift changes no softmax


def test_the_method_leaves_padding_out(method):
    given = loss(method, [0.0, 0.0], [0.0, 2 * math.log(3)])
    assert loss(method, [0.0, 0.0, 9.0], [0.0, 2 * math.log(3), -9.0], [True, True, False]) == pytest.approx(
        given
    )


def test_the_methods_own_key_is_checked(method):
    cfg = CfgNode({"TAPS": ["p3"], "WEIGHT": 1.0, "TEMPERATURE": 0.0})
    with pytest.raises(ConfigError, match=r"^DISTILL\.CWD\.TEMPERATURE = 0\.0: not above 0\. Give a number"):
        type(method).from_config(cfg, dict, dict)


def test_the_reducer_by_hand():
    scope: dict = {}
    exec(REDUCER.split("REDUCERS[")[0], scope)
    teacher = torch.tensor([2.0, 4.0, -6.0]).reshape(1, 3, 1, 1)
    pooled = scope["mean"](teacher, torch.tensor([[0, 2], [1, -1]]))
    assert pooled.flatten().tolist() == [-2.0, 4.0]


def test_both_train_in_a_run(mgd_cfg, tmp_path):
    for name, text in {"cwd": METHOD, "mean_reducer": REDUCER, "train": SCRIPT}.items():
        (tmp_path / f"{name}.py").write_text(text)
    mgd_cfg.SOLVER.MAX_ITER, mgd_cfg.DATASETS.TEST = 2, ()
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    command = [tmp_path / "train.py", "--config-file", tmp_path / "run.yaml", "--num-gpus", 0]
    options = ["DISTILL.METHODS", '["cwd", "mgd"]', "DISTILL.MGD.REDUCER", "mean"]
    run_tool(*command, *options, "DISTILL.CWD.TEMPERATURE", 2.0)
    metrics: dict = {}
    for line in (tmp_path / "run/metrics.json").read_text().splitlines():
        metrics.update(json.loads(line))
    assert metrics["loss_cwd_p4"] > 0
    assert metrics["cwd_p5/gradient_ratio"] > 0
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
