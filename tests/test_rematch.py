"""When the matching is solved, from which images, and in whose trainer."""

from __future__ import annotations

import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model

from mgd_det import RematchHook, register_datasets
from mgd_det.config import student_config
from mgd_det.errors import ConfigError
from mgd_det.rematch import MatchingImages, UpdateSchedule


def due(schedule: UpdateSchedule, last: int) -> list[int]:
    return [i for i in range(last + 1) if schedule.due(i)]


def test_schedule_by_period_then_slower():
    assert due(UpdateSchedule(5, 15, 30), 100) == [0, 5, 10, 15, 30, 60, 90]
    assert due(UpdateSchedule(4, 100, 0), 13) == [0, 4, 8, 12]
    assert due(UpdateSchedule(4, 6, 0), 13) == [0, 4]
    assert due(UpdateSchedule(0, 10, 0), 30) == [0]


def test_default_schedule_over_a_coco_run(mgd_cfg):
    mgd_cfg.DISTILL.MGD.UPDATE.PERIOD = 5000
    schedule = RematchHook(mgd_cfg).schedule
    assert due(schedule, 90000) == [0, 5000, 10000, 15000, 30000, 45000, 60000, 75000, 90000]


@pytest.mark.parametrize("key", ["PERIOD", "SLOW_AFTER", "SLOW_PERIOD", "NUM_IMAGES"])
def test_schedules_that_make_no_sense(mgd_cfg, key):
    mgd_cfg.DISTILL.MGD.UPDATE[key] = -1
    with pytest.raises(ConfigError, match=rf"DISTILL\.MGD\.UPDATE\.{key} = -1"):
        RematchHook(mgd_cfg)


def test_images_depend_on_seed_and_iteration_alone(mgd_cfg):
    register_datasets(mgd_cfg)

    def drawn(iteration: int) -> list[str]:
        batches = MatchingImages(mgd_cfg)(iteration)
        return [x["file_name"] for batch in batches for x in batch]

    torch.manual_seed(0)
    first = drawn(0)
    torch.manual_seed(1)
    assert drawn(0) == first
    assert len(set(first)) == 4
    assert sorted(drawn(3)) != sorted(first)
    mgd_cfg.SEED = 2
    assert sorted(drawn(0)) != sorted(first)


def test_images_are_the_whole_set_when_it_is_small(mgd_cfg):
    register_datasets(mgd_cfg)
    mgd_cfg.DISTILL.MGD.UPDATE.NUM_IMAGES = 1000
    assert sum(len(batch) for batch in MatchingImages(mgd_cfg)(0)) == 16


def train(trainer) -> None:
    trainer.resume_or_load(resume=True)
    trainer.train()


def test_it_plugs_into_a_stock_trainer_and_survives_resume(mgd_cfg):
    """The snippet of the README: a config call, a meta-architecture name, a hook."""
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()

    def stock_trainer() -> DefaultTrainer:
        trainer = DefaultTrainer(mgd_cfg)
        trainer.register_hooks([RematchHook(mgd_cfg)])
        return trainer

    mgd_cfg.SOLVER.MAX_ITER = 2
    first = stock_trainer()
    train(first)
    solved = first.model.methods["mgd"]._matchings["res4"].groups
    norm = first.model.methods["mgd"].norms["res4"].weight

    mgd_cfg.SOLVER.MAX_ITER = 3  # 3 is the period: a matching at 2 can only be the first run's
    second = stock_trainer()
    train(second)
    assert second.start_iter == 2
    assert torch.equal(second.model.methods["mgd"]._matchings["res4"].groups, solved)
    assert not torch.equal(norm, torch.ones_like(norm))

    stock = build_model(student_config(mgd_cfg))
    for name in ("model_0000001.pth", "model_final.pth"):
        saved = torch.load(f"{mgd_cfg.OUTPUT_DIR}/{name}", weights_only=True)
        stock.load_state_dict(saved["model"], strict=True)


def test_each_update_is_logged_with_cost_and_change(mgd_cfg):
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()
    mgd_cfg.SOLVER.MAX_ITER = 4
    trainer = DefaultTrainer(mgd_cfg)
    trainer.register_hooks([RematchHook(mgd_cfg)])
    trainer.train()
    histories = trainer.storage.histories()
    costs = histories["mgd/res4/match_cost"].values()
    changes = histories["mgd/res4/match_changed"].values()
    assert [iteration for _, iteration in costs] == [0, 3]
    assert all(0 < cost < 2 for cost, _ in costs)
    assert changes[0][0] == 1.0
    assert 0 <= changes[1][0] < 1


def test_the_hook_wants_a_distiller(student_cfg):
    register_datasets(student_cfg)
    cfg = student_cfg.clone()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.DATASETS.TEST = ()
    trainer = DefaultTrainer(cfg)
    trainer.register_hooks([RematchHook(cfg)])
    with pytest.raises(ConfigError, match=r"MODEL\.META_ARCHITECTURE.*DistilledDetector"):
        trainer.train()


def test_with_distillation_disabled_the_hook_does_nothing(student_cfg):
    register_datasets(student_cfg)
    student_cfg.DATASETS.TEST = ()
    trainer = DefaultTrainer(student_cfg)
    trainer.register_hooks([RematchHook(student_cfg)])
    trainer.train()
    assert not any("mgd" in name for name in trainer.storage.histories())
