"""`--suggest-weights`: by hand from given scalars, and as a command on a real run."""

from __future__ import annotations

import json
import math
import os
import shlex

import numpy as np
import pytest
from fvcore.common.history_buffer import HistoryBuffer
from helpers.commands import ROOT, run_tool

from mgd_det.config import load_config
from mgd_det.engine.trainer import Trainer
from mgd_det.run.main import argument_parser, main
from mgd_det.run.suggest_weights import Measured, measure

TRAIN_NET = ROOT / "tools/train_net.py"


def history(*values: float) -> HistoryBuffer:
    buffer = HistoryBuffer()
    for iteration, value in enumerate(values):
        buffer.update(value, iteration)
    return buffer


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        (Measured("loss_a", weight=0.5, share=3.0, ratio=0.02), 25.0),  # the ratio is linear in the weight
        (Measured("loss_a", weight=2.0, share=4.0, ratio=None), 0.5),
        (Measured("loss_a", weight=1.0, share=0.3, ratio=3.0), 0.33),  # to two digits
    ],
)
def test_the_suggested_weight_makes_the_ratio_one(measured, expected):
    assert measured.suggested == expected


@pytest.mark.parametrize("compared", [0.0, math.nan, math.inf])
def test_what_was_zero_or_broken_suggests_nothing(compared):
    assert math.isnan(Measured("loss_a", 1.0, 1.0, compared).suggested)


def test_medians_of_the_second_half_beside_the_tasks_losses(mgd_cfg):
    detector = Trainer.build_model(mgd_cfg)
    scalars = {
        "loss_cls": history(90, 90, 1, 2, 3),  # of 5 iterations those from 2 on: median 2
        "loss_box_reg": history(90, 90, 2, 2, 2),
        "loss_mgd_res3": history(90, 90, 8, 8, 8),
        "loss_mgd_res4": history(90, 90, 2, 2, 1),
        "loss_mgd_res5": history(0, 0, 0, 0, 0),
        "mgd_res3/gradient_ratio": history(90, 90, 4, 5, 6),
        "total_loss": history(1, 1, 1, 1, 1),
        "time": history(1, 1, 1, 1, 1),
    }
    res3, res4, res5 = measure(detector, scalars, 5)["mgd"]
    assert res3 == ("loss_mgd_res3", 0.05, 8 / 4, 5)
    assert res4 == ("loss_mgd_res4", 0.05, 2 / 4, None)
    assert res5 == ("loss_mgd_res5", 0.05, 0, None)


def to_append(text: str) -> list[str]:
    """The KEY VALUE pairs of the line that is to be appended, as a shell would split it."""
    return shlex.split(text.split("To append:\n")[1].splitlines()[0])


def test_the_command_suggests_the_same_whatever_weights_and_precision_are_and_writes_nothing(
    mgd_cfg, tmp_path
):
    """The first iteration's gradients are those of the same networks on the same images."""
    mgd_cfg.DISTILL.METHODS = ["mgd", "imitation", "logits"]
    mgd_cfg.DISTILL.IMITATION.TAPS = ["p3"]
    mgd_cfg.SEED = 3
    mgd_cfg.DISTILL.SCHEDULE.WARMUP_ITERS = 100  # would make the first losses zero
    mgd_cfg.DISTILL.EXPERIMENT.DECAY_ITER, mgd_cfg.DISTILL.SCHEDULE.STOP_ITER = 200, 300
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    command = (TRAIN_NET, "--config-file", tmp_path / "run.yaml", "--num-gpus", 0, "--suggest-weights", 1)
    other = ["DISTILL.MGD.LOSS_WEIGHTS", "[0.2, 5, 60]", "DISTILL.LOGITS.WEIGHT", "0.01"]
    other += ["SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", "bfloat16"]
    before = sorted(os.listdir(tmp_path))
    pairs, others = (to_append(run_tool(*command, *opts, cwd=tmp_path).stdout) for opts in ([], other))
    assert sorted(os.listdir(tmp_path)) == before
    assert pairs[::2] == [
        *("DISTILL.MGD.LOSS_WEIGHTS", "DISTILL.IMITATION.LOSS_WEIGHTS"),
        *("DISTILL.LOGITS.WEIGHT", "DISTILL.LOGITS.BOX_WEIGHT"),
    ]
    found = [[json.loads(value) for value in values[1::2]] for values in (pairs, others)]
    assert [len(found[0][0]), len(found[0][1])] == [3, 1]
    for weights, again in zip(*found):
        assert min(np.atleast_1d(weights)) > 0
        assert again == pytest.approx(weights, rel=0.11)  # two digits
    load_config(str(tmp_path / "run.yaml"), pairs)  # takes them as they are


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suggest-weights", "0"], ["--suggest-weights = 0", "less than 1", "100"]),
        (["--suggest-weights", "9", "--resume"], ["--suggest-weights = 9", "--resume", "Give one"]),
        (["--suggest-weights", "9", "--eval-only"], ["--suggest-weights = 9", "--eval-only"]),
        (
            ["--suggest-weights", "9", "DISTILL.ENABLED", "False"],
            ["--suggest-weights = 9", "no method adds a loss", "DISTILL.ENABLED True"],
        ),
        (["--suggest-weights", "5"], ["--suggest-weights = 5", "the 4 of SOLVER.MAX_ITER", "fewer"]),
    ],
)
def test_what_has_nothing_to_measure_is_refused(mgd_cfg, tmp_path, capsys, arguments, words):
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    command = ["--config-file", str(tmp_path / "run.yaml"), "--num-gpus", "0", *arguments]
    with pytest.raises(SystemExit) as exit_info:
        main(argument_parser("").parse_args(command))
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert os.listdir(tmp_path) == ["run.yaml"]
