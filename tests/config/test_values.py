"""The table of values: what it allows, what it refuses, and who checks a config against it."""

from __future__ import annotations

import math

import pytest
from detectron2.config import get_cfg

from mgd_det import DistilledDetector, RematchHook, Trainer, add_mgd_config
from mgd_det.config import check_run_values
from mgd_det.errors import ConfigError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_mgd_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def test_the_defaults_are_allowed(cfg):
    check_run_values(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DISTILL.MATCHING.MODE", "later", "'later': unknown. Choose one of 'pass', 'online'."),
        ("DISTILL.MATCHING.ONLINE_EVERY", 0, "0: less than 1. Give a number of at least 1."),
        ("DISTILL.MATCHING.ITERATIONS", [1, "two"], r"\[1, 'two'\]: not all are whole numbers. Give a list"),
        ("DISTILL.MATCHING.ITERATIONS", None, "None: not a list. Give a list"),
        ("DISTILL.TEACHER.EVERY", 0, "0: less than 1. 1 runs the teacher in every iteration."),
        ("DISTILL.TEACHER.EVERY", None, "None: not a number. 1 runs the teacher in every iteration."),
        ("DISTILL.TEACHER.SCALE", 0.0, r"0.0: not in \(0, 1\]. Give a number above 0.0, up to 1.0."),
        ("DISTILL.TEACHER.SCALE", 1.5, r"1.5: not in \(0, 1\]"),
        ("DISTILL.TEACHER.DTYPE", "int8", r"'int8': unknown. Choose one of '', 'float32', .*, 'auto'."),
        ("DISTILL.TEACHER.CHANNELS_LAST", "yes", "'yes': unknown. Choose one of True, False, 'auto'."),
        ("DISTILL.TEACHER.CHANNELS_LAST", 2, "2: unknown"),
        ("DISTILL.TEACHER.MIN_AP", 101.0, r"101.0: not in \[0, 100\]. Give a number from 0 to 100."),
        ("DISTILL.TEACHER.MIN_AP", math.nan, r"nan: not in \[0, 100\]"),
        ("DISTILL.EXPERIMENT.ONLINE_DECAY", 0.0, r"0.0: not in \(0, 1\]. Give a number like 0.98."),
        ("DISTILL.EXPERIMENT.DECAY_ITER", 5, "5: the fall has no end behind it"),
        ("DATALOADER.NUM_WORKERS", -1, "-1: less than 0. 0 loads in the main process."),
        ("SOLVER.BASE_LR", math.nan, "nan: not a finite number. Give a number of at least 0."),
        ("SOLVER.BASE_LR", math.inf, "inf: not a finite number"),
        ("SOLVER.BASE_LR", -0.01, "-0.01: less than 0. Give a number of at least 0."),
        ("SOLVER.WEIGHT_DECAY", math.nan, "nan: not a finite number"),
        ("SOLVER.WEIGHT_DECAY", -1e-4, "-0.0001: less than 0"),
        ("SOLVER.WEIGHT_DECAY_NORM", -1e-4, "-0.0001: less than 0"),
        ("SOLVER.MOMENTUM", -0.9, "-0.9: less than 0"),
        ("SOLVER.GAMMA", math.nan, "nan: not a finite number"),
        ("SOLVER.GAMMA", -0.1, "-0.1: less than 0"),
        ("SOLVER.WARMUP_FACTOR", math.inf, "inf: not a finite number"),
        ("SOLVER.WARMUP_ITERS", -1, "-1: less than 0. Give a number of at least 0."),
        ("SOLVER.MAX_ITER", 0, "0: less than 1. Give a number of at least 1."),
        ("SOLVER.CHECKPOINT_PERIOD", 0, "0: less than 1"),
        ("TEST.EVAL_PERIOD", -1, "-1: less than 0. 0 evaluates at the end alone."),
        ("SEED", 2**32, r"4294967296: not in \[-1, 4294967295\]. Give a whole number of 32 bits, or -1"),
        ("SEED", -2, "-2: less than -1"),
        ("SOLVER.STEPS", (20000, 10000), r"\(20000, 10000\): not iterations in ascending order"),
        ("SOLVER.STEPS", (10000, 10000), r"\(10000, 10000\): not iterations in ascending order"),
        ("SOLVER.STEPS", (0, 10000), r"\(0, 10000\): not iterations in ascending order"),
    ],
)
def test_a_value_that_is_refused(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=f"{key} = {message}"):
        check_run_values(cfg)


@pytest.mark.parametrize(
    ("key", "value"),
    [("SEED", 2**32 - 1), ("SEED", -1), ("SOLVER.BASE_LR", 0.0), ("SOLVER.STEPS", ()), ("SOLVER.GAMMA", 0.0)],
)
def test_a_value_at_the_edge_is_allowed(cfg, key, value):
    cfg.merge_from_list([key, value])
    check_run_values(cfg)


def test_a_network_of_torchvision_that_no_builder_would_use(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.TORCHVISION.NAME = "mobilenet_v2"
    message = (
        r"NAME = 'build_retinanet_resnet_fpn_backbone': .*Set \"build_retinanet_torchvision_fpn_backbone"
    )
    with pytest.raises(ConfigError, match=message):
        check_run_values(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_torchvision_fpn_backbone"
    check_run_values(cfg)


@pytest.mark.parametrize(
    ("every", "length", "stop", "end"), [(100, 100, 0, 100), (5, 100, 4, 4), (5, 6, 0, None), (1, 1, 0, None)]
)
def test_the_teacher_runs_more_than_once(cfg, every, length, stop, end):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = length, ()
    cfg.DISTILL.TEACHER.EVERY, cfg.DISTILL.SCHEDULE.STOP_ITER = every, stop
    if end is None:
        check_run_values(cfg)
        return
    with pytest.raises(
        ConfigError, match=rf"EVERY = {every}: of the {end} iterations .* the first one alone"
    ):
        check_run_values(cfg)
    cfg.DISTILL.ENABLED = False  # no teacher runs at all
    check_run_values(cfg)


@pytest.mark.parametrize("entry", [Trainer, RematchHook, DistilledDetector])
def test_scripts_without_the_command_are_checked_as_well(entry, mgd_cfg):
    mgd_cfg.DISTILL.MATCHING.PERIOD = -1
    with pytest.raises(ConfigError, match=r"DISTILL\.MATCHING\.PERIOD = -1"):
        entry(mgd_cfg)
