"""The table of values: what it allows, what it refuses, and who checks a config against it."""

from __future__ import annotations

import math

import pytest
from detectron2.config import get_cfg

from mgd_det import DistilledDetector, RematchHook, Trainer, add_mgd_config
from mgd_det.config import check_values
from mgd_det.errors import ConfigError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_mgd_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def test_the_defaults_are_allowed(cfg):
    check_values(cfg)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("DISTILL.MATCHING.MODE", "later", "'later': unknown. Choose one of 'pass', 'online'."),
        ("DISTILL.MATCHING.ONLINE_EVERY", 0, "0: less than 1. Give a number of at least 1."),
        ("DISTILL.MATCHING.ITERATIONS", [1, "two"], r"\[1, 'two'\]: not all are whole numbers. Give a list"),
        ("DISTILL.TEACHER.MIN_AP", 101.0, r"101.0: not in \[0, 100\]. Give a number from 0 to 100."),
        ("DISTILL.TEACHER.MIN_AP", math.nan, r"nan: not in \[0, 100\]"),
        ("DISTILL.EXPERIMENT.ONLINE_DECAY", 0.0, r"0.0: not in \(0, 1\]. Give a number like 0.98."),
        ("DISTILL.EXPERIMENT.DECAY_ITER", 5, "5: the fall has no end behind it"),
        ("DATALOADER.NUM_WORKERS", -1, "-1: less than 0. 0 loads in the main process."),
    ],
)
def test_a_value_that_is_refused(cfg, key, value, message):
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=f"{key} = {message}"):
        check_values(cfg)


@pytest.mark.parametrize("entry", [Trainer, RematchHook, DistilledDetector])
def test_scripts_without_the_command_are_checked_as_well(entry, mgd_cfg):
    mgd_cfg.DISTILL.MATCHING.PERIOD = -1
    with pytest.raises(ConfigError, match=r"DISTILL\.MATCHING\.PERIOD = -1"):
        entry(mgd_cfg)
