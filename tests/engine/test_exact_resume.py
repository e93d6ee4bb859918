"""A run that is killed and resumed equals one that was left alone: real processes, real SIGKILL."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from checking.checks import kill_and_resume
from checking.jobs import equal_values, final, make_config
from detectron2.data import DatasetMapper

from mgd_det.config import check_run_values
from mgd_det.data.datasets import register_datasets
from mgd_det.engine.exact_resume import ExactLoader, SampleOrder, seed_all
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError
from mgd_det.run.metrics import read_metrics


def batches(order: SampleOrder, count: int) -> list:
    return list(islice(order, count))


def test_order_is_a_shuffle_of_every_epoch():
    order = SampleOrder(6, 2, seed=3, landscape=None)
    flat = [pair for batch in batches(order, 6) for pair in batch]
    assert [position for position, _ in flat] == list(range(12))
    first, second = ([index for _, index in flat[i : i + 6]] for i in (0, 6))
    assert sorted(first) == sorted(second) == list(range(6))
    assert first != second
    assert batches(SampleOrder(6, 2, seed=4, landscape=None), 6) != batches(order, 6)


@pytest.mark.parametrize("landscape", [None, [True, False, False, True, True, False, True]])
def test_order_can_start_anywhere(landscape):
    """Part-filled buckets included: the rest of the order is the same."""
    whole = batches(SampleOrder(7, 2, 0, landscape), 20)
    for start in (1, 2, 7, 13):
        assert batches(SampleOrder(7, 2, 0, landscape, start), 20 - start) == whole[start:]


def test_a_batch_is_of_one_orientation():
    landscape = [True, False, True, False, False]
    for batch in batches(SampleOrder(5, 3, 0, landscape), 10):
        assert len({landscape[index] for _, index in batch}) == 1


def test_processes_share_the_positions_out():
    orders = [SampleOrder(5, 1, 0, None) for _ in range(2)]
    for rank, order in enumerate(orders):
        order.rank, order.world_size = rank, 2
    alone = [batch[0] for batch in batches(SampleOrder(5, 1, 0, None), 8)]
    assert [batch[0] for batch in batches(orders[0], 4)] == alone[::2]
    assert [batch[0] for batch in batches(orders[1], 4)] == alone[1::2]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_do_not_depend_on_workers_or_on_the_streams(student_cfg, workers):
    register_datasets(student_cfg)
    student_cfg.DATALOADER.NUM_WORKERS = workers
    student_cfg.INPUT.MIN_SIZE_TRAIN = (48, 64, 80)
    seed_all(workers)
    state = torch.get_rng_state()
    loader = ExactLoader(student_cfg, DatasetMapper(student_cfg, True))
    loader.start = 1
    found = [x["image"].float().mean().item() for batch in islice(loader, 3) for x in batch]
    assert torch.equal(torch.get_rng_state(), state)
    student_cfg.DATALOADER.NUM_WORKERS = 0
    expected = [
        x["image"].float().mean().item()
        for b in islice(ExactLoader(student_cfg, DatasetMapper(student_cfg, True)), 4)
        for x in b
    ]
    assert found == expected[2:]


def test_another_sampler_is_refused(student_cfg):
    student_cfg.DISTILL.EXACT_RESUME = True
    student_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ConfigError, match=r"SAMPLER_TRAIN.*EXACT_RESUME False"):
        check_run_values(student_cfg)


@pytest.mark.parametrize("mode, kills", [("pass", 3), ("online", 3)])
def test_killed_and_resumed_equals_uninterrupted(mode, kills, demo_data, teacher_run, tmp_path):
    """The check that users run, in short; the seed that was drawn (SEED -1) goes to the other run by hand."""
    config = make_config(tmp_path, demo_data, teacher_run)
    figures = kill_and_resume(config, tmp_path, mode=mode, kills=kills, seed=0)
    hits = ("while writing a checkpoint", "elsewhere in training", "before training")
    assert figures["kills"] == sum(figures[hit] for hit in hits) == kills
    assert figures["most iterations lost at a kill"] <= figures["checkpoint period"]
    logged = [json.loads(line) for line in (tmp_path / "alone/metrics.json").read_text().splitlines()]
    assert {19, 39, figures["iterations"] - 1} <= {line["iteration"] for line in logged}


def metrics_of_earlier_runs(cfg, text: str) -> Path:
    """Written for a config of two iterations with exact resume."""
    register_datasets(cfg)
    cfg.DATASETS.TEST, cfg.SOLVER.MAX_ITER = (), 2
    cfg.DISTILL.EXACT_RESUME, cfg.SEED = True, 3
    metrics = Path(cfg.OUTPUT_DIR, "metrics.json")
    metrics.parent.mkdir()
    metrics.write_text(text)
    return metrics


def train(cfg, *, resume: bool) -> None:
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()


@pytest.mark.parametrize(("resume", "expected"), [(True, [1]), (False, [19, 1])])
def test_a_run_killed_before_its_first_checkpoint_leaves_no_metrics_behind(resume, expected, student_cfg):
    """What a start that went for nothing has written; a new run in the folder leaves files alone."""
    metrics = metrics_of_earlier_runs(student_cfg, '{"iteration": 19}\n')
    train(student_cfg, resume=resume)
    assert [json.loads(line)["iteration"] for line in metrics.read_text().splitlines()] == expected


def test_of_the_runs_in_a_folder_the_latest_loses_metrics_and_the_earlier_none(student_cfg):
    """A finished run; one after it, without --resume, killed behind its checkpoint; and what resumes that."""
    metrics = metrics_of_earlier_runs(
        student_cfg, '{"iteration": 1, "run": 1}\n{"iteration": 599, "run": 1}\n'
    )
    train(student_cfg, resume=False)
    with metrics.open("a") as f:
        f.write('{"iteration": 3, "run": 2}\n')  # what it wrote behind its last checkpoint
    student_cfg.SOLVER.MAX_ITER = 3
    train(student_cfg, resume=True)
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [(line["iteration"], line.get("run")) for line in lines] == [(1, 1), (599, 1), (2, None)]


def test_a_trainer_of_ones_own_needs_a_seed(student_cfg):
    register_datasets(student_cfg)
    student_cfg.DISTILL.EXACT_RESUME = True
    student_cfg.SEED = -1
    with pytest.raises(ConfigError, match=r"SEED = -1.*Set one"):
        Trainer(student_cfg)


@pytest.mark.parametrize("period", [20, 6])
def test_metrics_of_an_iteration_whose_checkpoint_was_the_last_that_was_written(period, student_cfg):
    """The run was killed between the two, and before it was evaluated."""
    student_cfg.DISTILL.EXACT_RESUME, student_cfg.SEED = True, 3
    student_cfg.SOLVER.CHECKPOINT_PERIOD = student_cfg.TEST.EVAL_PERIOD = period
    student_cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0  # an untrained student has no AP with the usual one
    register_datasets(student_cfg)

    def lines(folder: str, *ends: int):
        cfg = student_cfg.clone()
        cfg.OUTPUT_DIR += folder
        metrics = Path(cfg.OUTPUT_DIR, "metrics.json")
        for end in ends:
            torch.manual_seed(0)
            cfg.SOLVER.MAX_ITER = end
            trainer = Trainer(cfg)
            trainer.resume_or_load(resume=end != ends[0])
            trainer.train()
            if end == period:
                assert f'"iteration": {end - 1}' in metrics.read_text()
                metrics.write_text("")
        found = [json.loads(line) for line in metrics.read_text().splitlines()]
        return [{k: v for k, v in line.items() if "time" not in k and "seconds" not in k} for line in found]

    alone = lines("_alone", period + 2)
    assert lines("_killed", period, period + 2) == alone
    assert [line["iteration"] for line in alone if "bbox/AP" in line] == [period - 1, period + 2]


def test_a_teacher_that_runs_in_some_iterations_survives_a_resume(mgd_cfg):
    """The checkpoint lies between two of its iterations, and so does what is last written to the metrics."""
    mgd_cfg.DISTILL.EXACT_RESUME, mgd_cfg.SEED, mgd_cfg.DATASETS.TEST = True, 3, ()
    mgd_cfg.DISTILL.TEACHER.EVERY, mgd_cfg.DISTILL.STRENGTH, mgd_cfg.SOLVER.CHECKPOINT_PERIOD = 4, 0.5, 50
    register_datasets(mgd_cfg)

    def run(folder: str, *ends: int):
        cfg = mgd_cfg.clone()
        cfg.OUTPUT_DIR += folder
        for end in ends:
            torch.manual_seed(0)
            cfg.SOLVER.MAX_ITER = end
            train(cfg, resume=end != ends[0])
        lines = read_metrics(Path(cfg.OUTPUT_DIR, "metrics.json"))
        # Each end of a training writes a line of times as well.
        return {**final(Path(cfg.OUTPUT_DIR)), "metrics": [line for line in lines if len(line) > 5]}

    alone = run("_alone", 7)
    assert equal_values(run("_resumed", 6, 7), alone) > 100
    logged = [(line["iteration"], "loss_mgd_res3" in line) for line in alone["metrics"]]
    assert logged == [(4, True), (6, False)]
