"""Weights of losses that are measured: by hand, and in a training."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
import torch

from mgd_det import Trainer, register_datasets
from mgd_det.engine.automatic_weights import FIRST, AutomaticWeights
from mgd_det.methods import LossInfo

LOSSES = {"loss_a": LossInfo("res3", 2.0), "loss_b": LossInfo("res4", 0.5)}
FIRST_LOSS = {"loss_a": LOSSES["loss_a"]}


def alone(tensor):
    """Sums over one process."""


def test_a_loss_counts_nothing_before_its_first_measurement_and_then_pulls_as_told():
    automatic = AutomaticWeights(3.0)
    assert automatic.scales(LOSSES) == {"loss_a": 0.0, "loss_b": 0.0}
    automatic.take({"loss_a": 0.5}, LOSSES, alone)
    assert automatic.scales(LOSSES) == pytest.approx({"loss_a": 6.0, "loss_b": 0.0})
    automatic.take({"loss_a": 0.5, "loss_b": 12.0}, LOSSES, alone)
    assert automatic.scales(LOSSES) == pytest.approx({"loss_a": 6.0, "loss_b": 0.25})


def test_measurements_are_smoothed_over_four_in_their_logarithm():
    automatic = AutomaticWeights(1.0)
    for ratio in (1.0, 4.0):
        automatic.take({"loss_a": ratio}, LOSSES, alone)
    assert automatic.scales(LOSSES)["loss_a"] == pytest.approx(1 / 2)
    for ratio in (2.0, 2.0, 32.0):  # a fifth counts a quarter: 2 * 16 ** (1 / 4) = 4
        automatic.take({"loss_a": ratio}, LOSSES, alone)
    assert automatic.scales(LOSSES)["loss_a"] == pytest.approx(1 / 4)


def test_processes_take_the_mean_of_those_that_could_measure():
    automatic = AutomaticWeights(1.0)

    def with_another(tensor):
        """Another process measured 16 for the first loss, of weight 2, and nothing for the second."""
        tensor += tensor.new_tensor([[math.log(16.0 / 2.0), 0.0], [1.0, 0.0]])

    automatic.take({"loss_a": 1.0, "loss_b": 2.0}, LOSSES, with_another)
    assert automatic.scales(LOSSES) == pytest.approx({"loss_a": 1 / 4, "loss_b": 1 / 2})


@pytest.mark.parametrize("ratio", [0.0, math.nan, math.inf])
def test_what_cannot_be_compared_changes_nothing(ratio):
    automatic = AutomaticWeights(1.0)
    automatic.take({"loss_a": ratio, "loss_b": 2.0}, LOSSES, alone)
    assert automatic.scales(LOSSES) == pytest.approx({"loss_a": 0.0, "loss_b": 0.5})


def test_it_measures_at_first_then_every_period_and_not_after_the_end():
    automatic = AutomaticWeights(1.0, period=20, until=50)
    measured = []
    for iteration in range(100):
        if automatic.measures(iteration):
            measured.append(iteration)
            automatic.take({"loss_a": 1.0}, LOSSES, alone)
    assert measured == [*range(FIRST), 20, 40]
    assert not any(AutomaticWeights(0.0, period=1).measures(i) for i in range(3))
    assert AutomaticWeights(0.0).scales(LOSSES) == {}


def resumed(before: AutomaticWeights, common, losses=LOSSES, **options) -> AutomaticWeights:
    automatic = AutomaticWeights(1.0, **options)
    automatic.load_state_dict(before.state_dict(), common)
    automatic.measure_anew(losses)
    return automatic


def measured(losses) -> AutomaticWeights:
    automatic = AutomaticWeights(1.0)
    for _ in range(FIRST):
        automatic.take(dict.fromkeys(losses, 0.25), losses, alone)
    return automatic


def test_a_resumed_run_goes_on_with_what_was_measured():
    automatic = resumed(measured(LOSSES), LOSSES)
    assert automatic.scales(LOSSES) == pytest.approx({"loss_a": 4.0, "loss_b": 4.0})
    assert not automatic.measures(7)


def with_weight(name: str, weight: float) -> dict[str, LossInfo]:
    return {**LOSSES, name: LOSSES[name]._replace(weight=weight)}


def test_a_resumed_run_with_another_weight_pulls_as_it_did():
    """The factor beside a weight ten times as large is a tenth."""
    heavier = with_weight("loss_a", 20.0)
    automatic = AutomaticWeights(1.0)
    automatic.load_state_dict(measured(LOSSES).state_dict(), heavier)
    automatic.measure_anew(heavier)
    assert automatic.scales(heavier) == pytest.approx({"loss_a": 0.4, "loss_b": 4.0})
    assert not automatic.measures(7)


def test_a_resumed_run_measures_a_loss_that_had_no_weight():
    without = with_weight("loss_a", 0.0)
    automatic = resumed(measured(without), LOSSES)
    assert automatic.scales(LOSSES) == pytest.approx({"loss_a": 0.0, "loss_b": 4.0})
    assert automatic.measures(7)
    assert not resumed(measured(LOSSES), LOSSES, losses=without).measures(7)  # nor one that has none now


def test_the_state_of_an_earlier_version_is_taken_up():
    ratios = {name: [FIRST, math.log(0.25)] for name in LOSSES}
    automatic = AutomaticWeights(1.0)
    automatic.load_state_dict({"left": 0, "known": list(LOSSES), "measured": ratios}, LOSSES)
    automatic.measure_anew(LOSSES)
    assert automatic.scales(LOSSES) == pytest.approx({"loss_a": 4.0, "loss_b": 4.0})
    assert not automatic.measures(7)


@pytest.mark.parametrize(
    "before, common",
    [
        (AutomaticWeights(0.0), LOSSES),
        (measured(FIRST_LOSS), FIRST_LOSS),
        (measured(LOSSES), FIRST_LOSS),
    ],
    ids=["without automatic weights", "without this method", "with one that starts afresh"],
)
def test_a_resumed_run_measures_losses_that_are_new_also_after_the_end(before, common):
    automatic = resumed(before, common, until=50)
    iterations = [iteration for iteration in range(60, 60 + FIRST) if automatic.measures(iteration)]
    for _ in iterations:
        automatic.take({"loss_a": 0.25, "loss_b": 0.5}, LOSSES, alone)
    assert len(iterations) == FIRST
    assert automatic.scales(LOSSES) == pytest.approx({"loss_a": 4.0, "loss_b": 2.0})
    assert not automatic.measures(60 + FIRST)


def test_a_loss_whose_gradient_could_never_be_measured_is_named(caplog):
    automatic = AutomaticWeights(1.0)
    logger = logging.getLogger("detectron2.mgd_det.engine.automatic_weights")
    logger.addHandler(caplog.handler)
    try:
        for _ in range(FIRST):
            automatic.take({"loss_a": 0.25, "loss_b": math.inf}, LOSSES, alone)
    finally:
        logger.removeHandler(caplog.handler)
    assert "no gradient could be measured of loss_b, so they count nothing" in caplog.text


def test_a_training_with_it_and_its_resume(mgd_cfg):
    mgd_cfg.DISTILL.STRENGTH, mgd_cfg.DISTILL.GRADIENT_PERIOD = 0.5, 0
    mgd_cfg.DISTILL.METHODS, mgd_cfg.SOLVER.BASE_LR = ["mgd", "logits"], 1e-6
    mgd_cfg.DATASETS.TEST, mgd_cfg.SOLVER.MAX_ITER, mgd_cfg.DISTILL.EXACT_RESUME = (), 4, True
    mgd_cfg.SEED = 1
    register_datasets(mgd_cfg)

    def run(iterations, resume):
        mgd_cfg.SOLVER.MAX_ITER = iterations
        torch.manual_seed(0)
        trainer = Trainer(mgd_cfg)
        trainer.resume_or_load(resume=resume)
        trainer.train()
        return trainer

    run(3, False)
    resumed = run(4, True)
    lines = [
        json.loads(line) for line in (Path(mgd_cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    ]
    last = next(line for line in lines if line["iteration"] == 3)
    weights = [name for name in last if name.endswith("/weight")]
    assert len(weights) == 5  # of mgd at three taps, of classes and boxes
    # Nearly the same network sees other images: the ratio is nearly what was asked for.
    assert all(0.1 < last[name.replace("/weight", "/gradient_ratio")] < 2.5 for name in weights)

    mgd_cfg.OUTPUT_DIR += "_at_once"
    at_once = run(4, False)
    states = [
        trainer.state_dict()["hooks"]["RematchHook"]["automatic_weights"] for trainer in (resumed, at_once)
    ]
    assert states[0] == states[1]
    assert states[0]["left"] == FIRST - 4
