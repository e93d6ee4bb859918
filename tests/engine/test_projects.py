"""Projects of other people: their keys, mapper, trainer and checkpointer stay what they are."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model
from helpers.detectors import stir
from helpers.projects import (
    FUNCTION,
    OldTrainer,
    ProjectTrainer,
    WithoutHookStates,
    add_project_config,
)

import mgd_det
from mgd_det import RematchHook, register_datasets
from mgd_det.config import student_config
from mgd_det.engine.distill_state import DistillState
from mgd_det.engine.state_keys import MATCHING_STATE


@pytest.fixture
def cfg(mgd_cfg):
    """An MGD run with imitation beside it, whose teacher is wider, so that there are adapters to keep."""
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()
    mgd_cfg.DISTILL.METHODS = ["mgd", "imitation"]
    mgd_cfg.DISTILL.IMITATION.ADAPTER = "always"
    mgd_cfg.DISTILL.MATCHING.PERIOD = 100
    mgd_cfg.SOLVER.MAX_ITER = 2
    return mgd_cfg


def trained(kind, cfg, *, resume: bool = False):
    trainer = kind(cfg)
    trainer.register_hooks([RematchHook(cfg)])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def saved(cfg, name: str = "model_final.pth"):
    return torch.load(Path(cfg.OUTPUT_DIR) / name, weights_only=True)


def as_list(state) -> list:
    return [value.tolist() for value in state.values() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("kind", [OldTrainer, WithoutHookStates])
def test_a_checkpointer_that_stores_no_hooks_stores_ours(kind, cfg, caplog):
    trained(kind, cfg)
    state = saved(cfg)[MATCHING_STATE]
    assert set(state) >= {"mgd", "imitation"}

    cfg.SOLVER.MAX_ITER = 3
    resuming = kind(cfg)
    resuming.register_hooks([RematchHook(cfg)])
    resuming.resume_or_load(resume=True)
    assert as_list(resuming.model.distill_state()["imitation"]) == as_list(state["imitation"])
    assert any(as_list(state["imitation"]))
    caplog.clear()
    with caplog.at_level(logging.INFO, "detectron2"):
        resuming.train()
    assert resuming.iter == 3
    assert "before iteration" not in caplog.text  # the matching is that of the first run
    assert "holds no state of the distillation" not in caplog.text


def test_a_trainer_that_stores_its_hooks_stores_ours_once(cfg):
    trained(DefaultTrainer, cfg)
    checkpoint = saved(cfg)
    assert MATCHING_STATE in checkpoint["trainer"]["hooks"]
    assert set(checkpoint) - {"iteration"} == {"model", "trainer"}


def test_a_resume_without_the_state_says_what_that_means(cfg, caplog):
    trained(OldTrainer, cfg)
    cfg.SOLVER.MAX_ITER = 3
    cfg.DISTILL.STRENGTH, cfg.DISTILL.STRENGTH_UNTIL = 0.5, 1  # whose weights were to be found before
    late = OldTrainer(cfg)
    late.resume_or_load(resume=True)
    hook = RematchHook(cfg)
    late.register_hooks([hook])
    with caplog.at_level(logging.WARNING, "detectron2"):
        late.train()
    assert all(hook.automatic.scales(hook.detector.losses).values())
    assert "goes on at iteration 2, but its checkpoint holds no state of the distillation" in caplog.text


def test_a_loop_gives_its_checkpointer_the_state(cfg, tmp_path, caplog):
    trained(OldTrainer, cfg)
    learnt = saved(cfg)[MATCHING_STATE]
    model = mgd_det.wrap(build_model(cfg), cfg)
    state = DistillState(model)
    state.check_resumed(0)
    assert "goes on" not in caplog.text
    state.check_resumed(5)
    assert "goes on at iteration 5" in caplog.text
    state.load_state_dict(learnt)
    caplog.clear()
    state.check_resumed(5)
    assert "goes on" not in caplog.text

    DetectionCheckpointer(model, str(tmp_path), distill=state).save("here")
    again = mgd_det.wrap(build_model(cfg), cfg)
    DetectionCheckpointer(again, distill=DistillState(again)).load(str(tmp_path / "here.pth"))
    assert as_list(again.distill_state()["imitation"]) == as_list(learnt["imitation"])
    assert again.ready


@pytest.fixture
def project(cfg, tmp_path):
    """A distilled ProjectNet whose teacher has another width in the project's key."""
    add_project_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.PROJECT.EXTRA = "ProjectNet", 5
    cfg.INPUT.RANDOM_FLIP = "horizontal"
    teacher = cfg.clone()
    teacher.MODEL.PROJECT.EXTRA = 4
    folder = tmp_path / "project_teacher"
    folder.mkdir()
    (folder / "config.yaml").write_text(student_config(teacher).dump())
    model = build_model(teacher)
    stir(model)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(folder / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(folder / "model_final.pth")
    return cfg


@pytest.mark.parametrize("functions", [[], [FUNCTION]])
def test_a_project_trains_and_its_own_code_loads_the_student(functions, project, caplog):
    project.DISTILL.CONFIG_FUNCTIONS = functions
    hook = RematchHook(project)
    trainer = ProjectTrainer(project)
    trainer.register_hooks([hook])
    with caplog.at_level(logging.INFO, "detectron2"):
        trainer.train()
    assert trainer.model.teacher.model.extra.in_features == 4
    assert "reads images by the training loader's mapper: SixteenBitMapper" in caplog.text
    batches = [[x["image"] for x in batch] for batch in hook.matching.images(7)]
    again = [[x["image"] for x in batch] for batch in hook.matching.images(7)]
    assert max(float(image.max()) for batch in batches for image in batch) > 255 * 128
    assert all(torch.equal(a, b) for one, other in zip(batches, again) for a, b in zip(one, other))

    theirs = get_cfg()
    add_project_config(theirs)
    theirs.merge_from_file(f"{project.OUTPUT_DIR}/student_config.yaml")
    assert theirs.MODEL.META_ARCHITECTURE == "ProjectNet"
    assert theirs.MODEL.PROJECT.EXTRA == 5
    alone = build_model(theirs)
    alone.load_state_dict(saved(project)["model"], strict=True)
