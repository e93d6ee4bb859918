"""The moving average of the student's weights: its values, its files, and its way through a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng

from mgd_det.config import check_run_values, student_config
from mgd_det.data.datasets import register_datasets
from mgd_det.engine.ema import EMAHook
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError


class Watch(HookBase):
    """Copies the weights at the start and after every step."""

    def __init__(self) -> None:
        self.seen = []

    def before_train(self) -> None:
        self.seen.append({name: p.clone() for name, p in self.trainer.model.state_dict().items()})

    after_step = before_train


def train(cfg, *, resume=False) -> tuple[Trainer, Watch]:
    register_datasets(cfg)
    trainer, watch = Trainer(cfg), Watch()
    trainer.register_hooks([watch])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer, watch


def load(cfg, name: str):
    return torch.load(Path(cfg.OUTPUT_DIR, f"{name}.pth"), weights_only=True)


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


def test_parameters_are_averaged_buffers_copied_and_the_training_left_alone(student_cfg):
    student_cfg.SOLVER.EMA.ENABLED, student_cfg.SOLVER.EMA.DECAY = True, 0.5
    student_cfg.SOLVER.MAX_ITER, student_cfg.TEST.EVAL_PERIOD = 3, 2
    _, watch = seeded(student_cfg)
    first, second, third, last = watch.seen
    found = load(student_cfg, "model_final_ema")["model"]
    parameter = "head.cls_subnet.0.weight"
    expected = first[parameter] / 8 + second[parameter] / 8 + third[parameter] / 4 + last[parameter] / 2
    torch.testing.assert_close(found[parameter], expected)
    assert not torch.equal(found[parameter], last[parameter])
    buffer = "backbone.bottom_up.res3.0.conv1.norm.running_mean"
    assert torch.equal(found[buffer], last[buffer])
    build_model(student_config(student_cfg)).load_state_dict(found, strict=True)
    student_cfg.SOLVER.EMA.ENABLED, student_cfg.OUTPUT_DIR = False, student_cfg.OUTPUT_DIR + "_without"
    _, without = seeded(student_cfg)
    for here, there in zip(watch.seen, without.seen, strict=True):
        assert_equal(here, there)


def seeded(cfg):
    seed_all_rng(3)
    with torch.jit.optimized_execution(False):  # otherwise later calls are rounded in other ways
        return train(cfg)


def test_it_is_evaluated_beside_the_student(student_cfg):
    student_cfg.SOLVER.EMA.ENABLED, student_cfg.SOLVER.MAX_ITER = True, 1
    train(student_cfg)
    last = json.loads(Path(student_cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()[-1])
    assert {"bbox/AP", "ema/bbox/AP"} <= last.keys()
    assert Path(student_cfg.OUTPUT_DIR, "ema/inference/coco_instances_results.json").exists()


def test_it_goes_on_bit_for_bit_when_a_distillation_is_resumed(mgd_cfg, tmp_path):
    mgd_cfg.SOLVER.EMA.ENABLED, mgd_cfg.DISTILL.EXACT_RESUME, mgd_cfg.SEED = True, True, 3
    mgd_cfg.DATASETS.TEST = ()
    seed_all_rng(3)
    train(mgd_cfg)
    whole = load(mgd_cfg, "model_final_ema")["model"]
    assert whole.keys() == load(mgd_cfg, "model_final")["model"].keys()
    mgd_cfg.OUTPUT_DIR = str(tmp_path / "in_two")
    mgd_cfg.SOLVER.MAX_ITER = 2
    seed_all_rng(3)
    train(mgd_cfg)
    assert_equal(load(mgd_cfg, "model_0000001_ema")["model"], load(mgd_cfg, "model_final_ema")["model"])
    mgd_cfg.SOLVER.MAX_ITER = 4
    train(mgd_cfg, resume=True)
    assert_equal(load(mgd_cfg, "model_final_ema")["model"], whole)


class Inherits(HookBase):
    """Changes a weight before the first step, as RematchHook does, which may be registered behind EMAHook."""

    def before_train(self) -> None:
        self.trainer.model.head.cls_score.bias.data.fill_(7.0)


def test_it_begins_with_what_the_student_has_inherited(student_cfg):
    student_cfg.SOLVER.MAX_ITER, student_cfg.DATASETS.TEST, student_cfg.SOLVER.BASE_LR = 1, (), 1e-9
    student_cfg.SOLVER.EMA.ENABLED = True
    register_datasets(student_cfg)
    trainer = Trainer(student_cfg)
    trainer.register_hooks([Inherits()])
    trainer.resume_or_load(resume=False)
    trainer.train()
    (ema,) = (hook for hook in trainer._hooks if isinstance(hook, EMAHook))
    torch.testing.assert_close(
        ema.model.head.cls_score.bias, torch.full_like(ema.model.head.cls_score.bias, 7.0)
    )


def test_without_an_average_in_the_checkpoint_it_begins_with_the_weights_there(student_cfg, caplog):
    student_cfg.SOLVER.MAX_ITER, student_cfg.DATASETS.TEST = 2, ()
    train(student_cfg)
    student_cfg.SOLVER.EMA.ENABLED = True
    trainer, _ = train(student_cfg, resume=True)  # which has no step left
    (ema,) = (hook for hook in trainer._hooks if isinstance(hook, EMAHook))
    assert_equal(ema.model.state_dict(), load(student_cfg, "model_final")["model"])
    assert "holds no average" in caplog.text


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_that_is_none(student_cfg, decay):
    student_cfg.SOLVER.EMA.DECAY = decay
    with pytest.raises(ConfigError, match=r"SOLVER\.EMA\.DECAY.*0\.999"):
        check_run_values(student_cfg)
