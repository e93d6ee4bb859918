"""A resumed training does what its command says: changes are applied, and what cannot be is refused."""

from __future__ import annotations

import pytest
import torch

from mgd_det import Trainer, register_datasets
from mgd_det.engine.fingerprint import check_fingerprint, fingerprint
from mgd_det.errors import ConfigError
from mgd_det.run.training import stream_seed


@pytest.fixture
def cfg(student_cfg):
    student_cfg.DATASETS.TEST, student_cfg.SEED = (), 5
    student_cfg.SOLVER.MAX_ITER = 2
    register_datasets(student_cfg)
    return student_cfg


def trained(cfg, *, resume: bool) -> Trainer:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_learning_rate_and_weight_decay_of_the_command_count(cfg):
    trained(cfg, resume=False)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 4, 1e-4, 0.125
    cfg.SOLVER.STEPS = (3,)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-4}
    assert max(group["weight_decay"] for group in trainer.optimizer.param_groups) == 0.125
    trainer.train()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {1e-5}  # after the step


def test_groups_that_change_keep_the_state_of_their_parameters(cfg):
    before = trained(cfg, resume=False).optimizer.state_dict()["state"]
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.BIAS_LR_FACTOR = 3, 2.0
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {cfg.SOLVER.BASE_LR, 2 * cfg.SOLVER.BASE_LR}
    assert len(trainer.optimizer.state) == len(before)


def test_an_exact_resume_with_another_seed_batch_or_other_data_is_refused(cfg):
    saved = fingerprint(cfg)
    check_fingerprint(saved, fingerprint(cfg), exact=True)
    check_fingerprint({}, fingerprint(cfg), exact=True)  # of an earlier version
    cfg.SEED = 6
    with pytest.raises(ConfigError, match="SEED = 6: the checkpoint was trained with 5"):
        check_fingerprint(saved, fingerprint(cfg), exact=True)
    cfg.SEED, cfg.SOLVER.IMS_PER_BATCH = 5, 4
    with pytest.raises(ConfigError, match=r"SOLVER.IMS_PER_BATCH = 4: the checkpoint was trained with 2"):
        check_fingerprint(saved, fingerprint(cfg), exact=True)
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATASETS.TRAIN = 2, (cfg.DATASETS.REGISTER[1][0],)
    with pytest.raises(ConfigError, match=r"DATASETS.TRAIN = "):
        check_fingerprint(saved, fingerprint(cfg), exact=True)
    check_fingerprint(saved, fingerprint(cfg), exact=False)


def test_a_checkpoint_carries_the_fingerprint_and_the_trainer_checks_it(cfg):
    cfg.DISTILL.EXACT_RESUME = True
    trained(cfg, resume=False)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.IMS_PER_BATCH = 3, 1
    with pytest.raises(ConfigError, match=r"SOLVER.IMS_PER_BATCH = 1: the checkpoint was trained with 2"):
        trained(cfg, resume=True)


def test_every_resume_draws_another_order(cfg):
    assert stream_seed(cfg, "") == 5  # as stock Detectron2
    seeds = [stream_seed(cfg, f"runs/a/model_{n:07d}.pth") for n in (1, 3)]
    assert len({5, *seeds}) == 3
    assert seeds[0] == stream_seed(cfg, "elsewhere/model_0000001.pth")
    cfg.SEED = -1
    assert stream_seed(cfg, "model_0000001.pth") is None


def test_a_student_that_is_not_finite_is_never_written(cfg):
    trainer = Trainer(cfg)
    with torch.no_grad():
        trainer.model.student.head.cls_score.bias[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"head.cls_score.bias is not finite, so model_x.pth is not"):
        trainer.checkpointer.save("model_x")
    assert not trainer.checkpointer.has_checkpoint()
