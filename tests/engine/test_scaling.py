"""`SOLVER.REFERENCE_WORLD_SIZE`: a config that was written for another number of processes."""

from __future__ import annotations

import pytest

from mgd_det.config import check_run_values
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError


def distillation(cfg) -> dict:
    return {**cfg.DISTILL.MATCHING, **cfg.DISTILL.SCHEDULE, **cfg.DISTILL.EXPERIMENT}


def test_the_iterations_of_the_distillation_scale_with_the_training(mgd_cfg):
    """Of 8 processes 2 are there: a quarter of the batch, four times the iterations."""
    mgd_cfg.SOLVER.REFERENCE_WORLD_SIZE, mgd_cfg.SOLVER.IMS_PER_BATCH = 8, 16
    mgd_cfg.SOLVER.MAX_ITER = 100
    mgd_cfg.merge_from_list(["DISTILL.MATCHING.ITERATIONS", [0, 10, 25]])
    mgd_cfg.DISTILL.STRENGTH_UNTIL = 50
    mgd_cfg.merge_from_list(["DISTILL.MATCHING.UNTIL", 90, "DISTILL.SCHEDULE.STOP_ITER", 80])
    mgd_cfg.freeze()
    before = distillation(mgd_cfg)
    scaled = Trainer.auto_scale_workers(mgd_cfg, 2)
    assert (scaled.SOLVER.MAX_ITER, scaled.SOLVER.IMS_PER_BATCH) == (400, 4)
    assert scaled.DISTILL.STRENGTH_UNTIL == 200
    changed = {key: value for key, value in distillation(scaled).items() if value != before[key]}
    assert changed == {
        **{"PERIOD": 12, "SLOW_AFTER": 60000, "SLOW_PERIOD": 60000},
        **{"ITERATIONS": [0, 40, 100], "UNTIL": 360, "STOP_ITER": 320},
    }
    assert distillation(mgd_cfg) == before
    assert scaled.is_frozen()


def test_more_processes_never_switch_a_period_off(mgd_cfg):
    mgd_cfg.SOLVER.REFERENCE_WORLD_SIZE = 1  # UPDATE.PERIOD is 3
    assert Trainer.auto_scale_workers(mgd_cfg, 8).DISTILL.MATCHING.PERIOD == 1


def test_without_it_nothing_is_scaled(mgd_cfg):
    assert Trainer.auto_scale_workers(mgd_cfg, 8) is mgd_cfg


def test_the_batch_divides_among_the_processes_that_the_config_was_written_for(mgd_cfg):
    mgd_cfg.SOLVER.IMS_PER_BATCH = 16
    with pytest.raises(ConfigError, match="does not divide among 3 processes"):
        check_run_values(mgd_cfg, 3)
    mgd_cfg.SOLVER.REFERENCE_WORLD_SIZE = 8  # 3 processes will take 2 images each, 6 in all
    check_run_values(mgd_cfg, 3)
    assert Trainer.auto_scale_workers(mgd_cfg, 3).SOLVER.IMS_PER_BATCH == 6
