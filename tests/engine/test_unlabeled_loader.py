"""Batches with images without labels, and trainings with them, in this project's trainer and in others."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from detectron2.engine import DefaultTrainer
from detectron2.utils.env import seed_all_rng

import mgd_det
from mgd_det.data.datasets import register_datasets
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError


@pytest.fixture
def cfg(mgd_cfg, demo_data):
    """Four images without labels for two with them, from the folder of the test set."""
    name = f"unlabeled_{demo_data}"
    mgd_cfg.DATASETS.REGISTER = [*mgd_cfg.DATASETS.REGISTER, [name, "", str(demo_data / "test")]]
    mgd_cfg.DATASETS.UNLABELED, mgd_cfg.DATALOADER.UNLABELED_RATIO = (name,), 2.0
    mgd_cfg.DATASETS.TEST, mgd_cfg.SEED = (), 3
    register_datasets(mgd_cfg)
    return mgd_cfg


def same(found, expected) -> bool:
    return found["file_name"] == expected["file_name"] and torch.equal(found["image"], expected["image"])


def files(batches) -> list[str]:
    return [Path(x["file_name"]).name for batch in batches for x in batch if x.get("unlabeled")]


def test_images_with_labels_are_those_of_before_and_others_are_added(cfg):
    cfg.DISTILL.EXACT_RESUME = True
    after = list(islice(Trainer.build_train_loader(cfg), 3))
    cfg.DATASETS.UNLABELED = ()
    before = list(islice(Trainer.build_train_loader(cfg), 3))
    assert [len(batch) for batch in after] == [6, 6, 6]
    for found, expected in zip(after, before):
        assert all(same(x, y) and "unlabeled" not in x for x, y in zip(found[:2], expected, strict=True))
        assert all(x["unlabeled"] is True and "instances" not in x for x in found[2:])
    # Two shuffles of the six images.
    names = files(after)
    assert sorted(names[:6]) == sorted(names[6:]) == sorted(set(names))
    assert names[:6] != names[6:]


def test_the_stock_loader_gives_what_it_would_give(cfg):
    def batches():
        seed_all_rng(3)
        return list(islice(Trainer.build_train_loader(cfg), 3))

    found, again = batches(), batches()
    cfg.DATASETS.UNLABELED = ()
    expected = batches()
    assert files(found) == files(again)
    for here, there in zip(found, expected):
        assert all(same(x, y) for x, y in zip(here[:2], there, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_can_start_anywhere(cfg, workers):
    cfg.DISTILL.EXACT_RESUME, cfg.DATALOADER.NUM_WORKERS = True, workers
    whole = list(islice(Trainer.build_train_loader(cfg), 4))
    loader = Trainer.build_train_loader(cfg)
    loader.start = 2
    for found, expected in zip(islice(loader, 2), whole[2:], strict=True):
        assert all(same(x, y) for x, y in zip(found, expected, strict=True))


def test_a_set_that_is_not_registered(cfg):
    cfg.DATASETS.UNLABELED = ("nowhere",)
    with pytest.raises(ConfigError, match=r"DATASETS\.UNLABELED = 'nowhere'.*DATASETS\.REGISTER"):
        mgd_det.with_unlabeled([], cfg)


def test_without_a_teacher_they_are_left_out(cfg):
    cfg.DISTILL.ENABLED = False
    assert files(islice(Trainer.build_train_loader(cfg), 1)) == []


def train(cfg, *, resume=False) -> dict:
    seed_all_rng(3)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return torch.load(Path(cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)


def test_a_resumed_run_equals_one_that_was_not_interrupted(cfg, tmp_path):
    cfg.DISTILL.EXACT_RESUME, cfg.DISTILL.GRADIENT_PERIOD = True, 1
    whole = train(cfg)
    logged = json.loads(Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()[-1])
    assert "mgd_res4/gradient_ratio" in logged
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(tmp_path / "in_two"), 2
    train(cfg)
    cfg.SOLVER.MAX_ITER = 4
    resumed = train(cfg, resume=True)
    assert all(torch.equal(resumed["model"][name], value) for name, value in whole["model"].items())
    # It trained on them: without, the weights are others.
    cfg.OUTPUT_DIR, cfg.DATASETS.UNLABELED = str(tmp_path / "without"), ()
    without = train(cfg)
    assert any(not torch.equal(without["model"][name], value) for name, value in whole["model"].items())


class TheirTrainer(DefaultTrainer):
    """A trainer of somebody else's, with the lines of docs/own_pipeline.md."""

    @classmethod
    def build_model(cls, cfg):
        return mgd_det.wrap(super().build_model(cfg), cfg)

    @classmethod
    def build_train_loader(cls, cfg):
        return mgd_det.with_unlabeled(super().build_train_loader(cfg), cfg)


def test_in_a_trainer_of_somebody_elses(cfg):
    cfg.SOLVER.MAX_ITER = 1
    seen = []
    trainer = TheirTrainer(cfg)
    trainer.register_hooks([mgd_det.RematchHook(cfg)])
    trainer.model.student.backbone.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert seen.count(4) == 1  # all other passes are over two images
