"""The best weights: which are written, what a resumed run knows of them, and metrics that cannot come."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.engine.hooks import EvalHook
from torch import nn

from mgd_det.checkpoint.checkpointer import WeightsWriter
from mgd_det.config import check_run_values
from mgd_det.data.datasets import register_datasets
from mgd_det.engine.best import BestHook
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError


class Counter(nn.Module):
    """Its weight is the number of the iteration."""

    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.zeros(()))

    def forward(self, data):
        return {"loss": -self.count}


def train(folder: Path, values, *, start=0, mode="max", metric="bbox/AP") -> None:
    """Train for an iteration for each value, which is that of the evaluation after it."""
    model, coming = Counter(), iter(values)
    model.count.data += start
    trainer = SimpleTrainer(model, [None] * 9, torch.optim.SGD(model.parameters(), lr=1.0))
    writer = WeightsWriter(model, str(folder))
    trainer.register_hooks(
        [EvalHook(1, lambda: {"bbox": {"AP": next(coming)}}), BestHook(1, writer, metric, mode)]
    )
    trainer.train(start, start + len(values))


def best(folder: Path):
    found = torch.load(folder / "model_best.pth", weights_only=True)
    return found["model"]["count"].item(), found["iteration"], found["value"]


@pytest.mark.parametrize(("mode", "expected"), [("max", (3.0, 2, 5.0)), ("min", (4.0, 3, 1.0))])
def test_the_best_of_all_evaluations_is_kept(tmp_path, mode, expected):
    train(tmp_path, [float("nan"), 2.0, 5.0, 1.0], mode=mode)
    assert best(tmp_path) == expected
    assert not (tmp_path / "last_checkpoint").exists()


def test_a_resumed_run_keeps_what_is_better(tmp_path):
    train(tmp_path, [2.0, 5.0])
    train(tmp_path, [4.0], start=2)
    assert best(tmp_path) == (2.0, 1, 5.0)
    train(tmp_path, [6.0], start=3)
    assert best(tmp_path) == (4.0, 3, 6.0)


def test_a_new_run_and_another_metric_begin_anew(tmp_path):
    train(tmp_path, [5.0])
    train(tmp_path, [4.0])
    assert best(tmp_path)[2] == 4.0
    found = torch.load(tmp_path / "model_best.pth", weights_only=True)
    torch.save({**found, "metric": "bbox/AP50"}, tmp_path / "model_best.pth")
    train(tmp_path, [3.0], start=1)
    assert best(tmp_path)[2] == 3.0


@pytest.mark.parametrize("average", [False, True])
def test_the_trainer_writes_the_weights_that_were_evaluated(student_cfg, average):
    register_datasets(student_cfg)
    student_cfg.SOLVER.EMA.ENABLED, student_cfg.SOLVER.EMA.DECAY = True, 0.5
    student_cfg.SOLVER.MAX_ITER, student_cfg.TEST.EVAL_PERIOD = 1, 1
    # COCO evaluation gives NaN without detections, and this finds some.
    student_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    student_cfg.TEST.BEST_METRIC = "ema/bbox/AP" if average else "bbox/AP"
    trainer = Trainer(student_cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    folder = Path(student_cfg.OUTPUT_DIR)
    found = torch.load(folder / "model_best.pth", weights_only=True)
    wanted = torch.load(folder / f"model_final{'_ema' if average else ''}.pth", weights_only=True)["model"]
    other = torch.load(folder / f"model_final{'' if average else '_ema'}.pth", weights_only=True)["model"]
    assert all(torch.equal(found["model"][name], value) for name, value in wanted.items())
    assert any(not torch.equal(found["model"][name], value) for name, value in other.items())
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize(
    ("metric", "options", "match"),
    [
        ("bbox/AP", {"TEST.EVAL_PERIOD": 0}, "EVAL_PERIOD 0 evaluates at the end alone"),
        ("bbox/AP", {"DATASETS.TEST": ()}, "DATASETS.TEST is empty"),
        ("ema/bbox/AP", {}, r"Set SOLVER\.EMA\.ENABLED True"),
        ("bbox/AP", {"DATASETS.TEST": ("a", "b")}, "2 sets are evaluated.*a/bbox/AP"),
        ("a/bbox/AP", {"DATASETS.TEST": ("a",)}, 'such as "bbox/AP"'),
        ("segm/AP", {}, r"MODEL\.MASK_ON is False"),
        ("bbox/ap", {}, "no such metric"),
        ("AP", {}, "no such metric"),
    ],
)
def test_a_metric_that_cannot_come(student_cfg, metric, options, match):
    student_cfg.TEST.BEST_METRIC, student_cfg.TEST.EVAL_PERIOD = metric, 2
    student_cfg.merge_from_list([x for pair in options.items() for x in pair])
    with pytest.raises(ConfigError, match=rf"TEST\.BEST_METRIC.*{match}"):
        check_run_values(student_cfg)


@pytest.mark.parametrize("metric", ["bbox/AP", "bbox/AP50", "bbox/AP-red square", "sem_seg/mIoU"])
def test_metrics_that_can(student_cfg, metric):
    student_cfg.TEST.BEST_METRIC, student_cfg.TEST.EVAL_PERIOD = metric, 2
    check_run_values(student_cfg)


def test_an_evaluation_that_is_made_up_for_does_not_replace_a_better_one(student_cfg):
    """An exact resume evaluates anew what a kill right after the checkpoint may have lost."""
    student_cfg.DISTILL.EXACT_RESUME, student_cfg.SEED = True, 1
    student_cfg.TEST.BEST_METRIC, student_cfg.TEST.EVAL_PERIOD = "bbox/AP", 1
    register_datasets(student_cfg)
    path = Path(student_cfg.OUTPUT_DIR, "model_best.pth")
    for iterations in (1, 2):
        student_cfg.SOLVER.MAX_ITER = iterations
        trainer = Trainer(student_cfg)
        trainer.resume_or_load(resume=iterations > 1)
        if iterations > 1:
            model = {"model": trainer.model.state_dict()}
            torch.save({**model, "metric": "bbox/AP", "value": 99.0, "iteration": 0}, path)
        trainer.train()
    assert torch.load(path, weights_only=True)["value"] == 99.0
