"""`tools/train_net.py` as a user runs it: real processes, real files, real data."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import default_setup
from detectron2.modeling import build_model
from helpers.commands import ROOT, run_tool, torchrun
from helpers.detectors import Perfect, small_config

from mgd_det import DistilledDetector
from mgd_det.config import load_config, student_config
from mgd_det.data.datasets import register_datasets
from mgd_det.engine.distill_state import DistillState
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError
from mgd_det.modeling.teacher import Teacher
from mgd_det.run.evaluation import require_teacher_ap
from mgd_det.run.summary import last_values

TRAIN_NET = ROOT / "tools/train_net.py"


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def write(cfg, path: Path) -> Path:
    path.write_text(cfg.dump())
    return path


def train_net(cfg, tmp_path, *arguments, **kwargs):
    config = write(cfg, tmp_path / "run.yaml")
    return run_tool(TRAIN_NET, "--config-file", config, "--num-gpus", 0, *arguments, **kwargs)


def checkpoint(folder, name="model_final.pth"):
    return torch.load(Path(folder) / name, weights_only=True)


@pytest.fixture(scope="module")
def finished(demo_data, teacher_run, tmp_path_factory):
    """A distillation of four iterations, run to its end: (config, output folder, log)."""
    folder = tmp_path_factory.mktemp("finished")
    cfg = small_config(demo_data, folder / "run", "TEST.EVAL_PERIOD", 2)
    cfg.DISTILL.ENABLED = True
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher_run / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher_run / "model_final.pth")
    result = train_net(cfg, folder)
    return cfg, folder / "run", result.stdout + result.stderr


def test_a_run_leaves_the_files_of_a_detectron2_run_and_a_stock_student(finished):
    cfg, run, _ = finished
    assert {"model_0000001.pth", "model_0000003.pth", "model_final.pth", "last_checkpoint"} <= set(
        os.listdir(run)
    )
    assert {"config.yaml", "student_config.yaml", "metrics.json", "log.txt"} <= set(os.listdir(run))
    assert any(name.startswith("events.out") for name in os.listdir(run))
    assert load_config(str(run / "config.yaml")).DISTILL == cfg.DISTILL

    stock = get_cfg()
    stock.merge_from_file(str(run / "student_config.yaml"))
    for name in ("model_0000001.pth", "model_final.pth"):
        model = build_model(stock)
        assert type(model).__name__ == "RetinaNet"
        model.load_state_dict(checkpoint(run, name)["model"], strict=True)


def test_metrics_hold_every_loss_and_box_ap(finished):
    _, run, _ = finished
    written = {name for line in metrics(run) for name in line}
    names = {f"loss_mgd_{tap}" for tap in ("res3", "res4", "res5")}
    assert names | {"loss_cls", "loss_box_reg", "total_loss", "bbox/AP", "bbox/AP50"} <= written


def test_the_log_tells_what_was_loaded_and_matched(finished):
    _, run, output = finished
    log = (run / "log.txt").read_text()
    assert "teacher: " in log
    assert "tensors loaded from" in log
    assert "matching mgd_res4 before iteration 0, from 4 images: mean cost" in log
    assert "matching mgd_res4 before iteration 3" in log
    assert "eta:" in output
    assert f"\n  the student, for stock Detectron2: {run}/student_config.yaml" in log


def test_evaluating_the_student_repeats_the_runs_last_evaluation(finished, tmp_path):
    """In a folder with the config of another run, which stays."""
    cfg, run, _ = finished
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "eval")
    cfg.DISTILL.TEACHER.CONFIG_FILE = "/gone/config.yaml"  # the teacher is not needed
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval/config.yaml").write_text("of: a run")
    train_net(cfg, tmp_path, "--eval-only", "MODEL.WEIGHTS", run / "model_final.pth")
    assert (tmp_path / "eval/config.yaml").read_text() == "of: a run"
    results = [
        json.loads((folder / "inference/coco_instances_results.json").read_text())
        for folder in (run, tmp_path / "eval")
    ]
    assert results[0] == results[1]


def test_evaluating_the_teacher(finished, tmp_path):
    cfg, _, _ = finished
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "eval")
    output = train_net(cfg, tmp_path, "--eval-teacher").stdout
    assert "copypaste: AP,AP50,AP75" in output
    assert (tmp_path / "eval/teacher/inference/coco_instances_results.json").exists()
    measured = [line.split()[-1] for line in output.splitlines() if "copypaste:" in line][-1].split(",")
    expected = pytest.approx(float(measured[0]), abs=1e-4, nan_ok=True)
    assert last_values(str(tmp_path / "eval/teacher"), cfg.DATASETS.TEST[0])["bbox/AP"] == expected


def test_resuming_continues_with_the_matching_and_the_optimiser(finished, tmp_path):
    """From the second of four iterations; 3 is the next update, so 2 runs on the old matching."""
    cfg, run, _ = finished
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.SOLVER.MAX_ITER = 3
    os.makedirs(cfg.OUTPUT_DIR)
    (tmp_path / "run/model_0000001.pth").write_bytes((run / "model_0000001.pth").read_bytes())
    (tmp_path / "run/last_checkpoint").write_text("model_0000001.pth")
    output = train_net(cfg, tmp_path, "--resume").stdout
    assert "Starting training from iteration 2" in output
    assert "matching mgd" not in output
    before, after = checkpoint(run, "model_0000001.pth"), checkpoint(cfg.OUTPUT_DIR)
    state = [
        x["trainer"]["hooks"]["RematchHook"]["mgd"]["_extra_state"]["matchings"] for x in (before, after)
    ]
    assert torch.equal(state[0]["res4"]["groups"], state[1]["res4"]["groups"])
    steps = [x["trainer"]["_trainer"]["optimizer"]["state"][0]["step"].item() for x in (before, after)]
    assert steps == [2, 3]


def another_teacher(config_file: str, folder: Path) -> str:
    """Weights like those beside the config, but for one number."""
    saved = torch.load(Path(config_file).parent / "model_final.pth")
    saved["model"]["backbone.bottom_up.res3.0.conv1.weight"][0, 0, 0, 0] += 1
    torch.save(saved, folder / "another.pth")
    return str(folder / "another.pth")


def test_another_teacher_is_not_resumed_with(finished, tmp_path):
    cfg, run, _ = finished
    state = checkpoint(run)["trainer"]["hooks"]["RematchHook"]
    cfg = cfg.clone()
    distiller = build_model(cfg)
    DistillState(distiller).load_state_dict(state)
    assert distiller.matching[0].ready
    cfg.DISTILL.TEACHER.WEIGHTS = another_teacher(cfg.DISTILL.TEACHER.CONFIG_FILE, tmp_path)
    with pytest.raises(ConfigError, match=r"TEACHER\.WEIGHTS = '.*another\.pth'.*checkpoint.*RESUME_FRESH"):
        DistillState(build_model(cfg)).load_state_dict(state)
    build_model(cfg).load_distill_state({"mgd": state["mgd"]})  # of a version that did not keep the teacher
    cfg.DISTILL.RESUME_FRESH = True
    distiller = build_model(cfg)
    DistillState(distiller).load_state_dict(state)
    assert not distiller.matching[0].ready


@pytest.mark.parametrize(
    ("opts", "fresh"),
    [
        (["DISTILL.MGD.TAPS", ["res4", "p3"]], True),
        (["DISTILL.MGD.NORM", "", "DISTILL.MGD.REDUCER", "sparse"], True),
        (["DISTILL.TEACHER.OPTS", ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]], True),
        (["DISTILL.TEACHER.WEIGHTS", "ANOTHER"], True),
        (["DISTILL.ENABLED", False], False),
        (["DISTILL.MGD.LOSS_WEIGHTS", [0.5]], False),  # what fits is continued with all the same
    ],
)
def test_adapters_start_fresh_where_the_config_says_so(opts, fresh, finished, tmp_path):
    """The student's weights, momentum and learning rate go on; the matching is solved anew."""
    cfg, run, _ = finished
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 3, ()
    cfg.DISTILL.TEACHER.ALLOW_PARTIAL_WEIGHTS = cfg.DISTILL.RESUME_FRESH = True
    cfg.merge_from_list(opts)
    if cfg.DISTILL.TEACHER.WEIGHTS == "ANOTHER":
        cfg.DISTILL.TEACHER.WEIGHTS = another_teacher(cfg.DISTILL.TEACHER.CONFIG_FILE, tmp_path)
    os.makedirs(cfg.OUTPUT_DIR)
    (tmp_path / "run/model_0000001.pth").write_bytes((run / "model_0000001.pth").read_bytes())
    (tmp_path / "run/last_checkpoint").write_text("model_0000001.pth")
    output = train_net(cfg, tmp_path, "--resume").stdout
    assert "Starting training from iteration 2" in output
    assert ("mgd starts afresh" in output) == fresh
    assert ("matching mgd" in output) == fresh
    before, after = checkpoint(run, "model_0000001.pth"), checkpoint(cfg.OUTPUT_DIR)

    def steps_of(trainer, name="backbone.bottom_up.res5.0.conv1.weight"):
        number = trainer["parameters"].index(name)
        return trainer["_trainer"]["optimizer"]["state"][number]["step"].item()

    assert [steps_of(x["trainer"]) for x in (before, after)] == [2, 3]
    rates = [
        {g["lr"] for g in x["trainer"]["_trainer"]["optimizer"]["param_groups"]} for x in (before, after)
    ]
    assert rates[0] == rates[1]


def test_a_teacher_under_the_required_ap_ends_the_run_before_it_trains(finished, tmp_path):
    cfg, _, _ = finished
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.DISTILL.TEACHER.MIN_AP, cfg.DISTILL.TEACHER.CHECK_IMAGES = 30.0, 2
    result = train_net(cfg, tmp_path, check=False)
    assert result.returncode == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "DISTILL.TEACHER.MIN_AP = 30.0: the teacher reaches AP 0.00 on 2 images of" in line
    assert "Look at DISTILL.TEACHER.WEIGHTS" in line
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "run").glob("*.pth"))


def test_a_teacher_that_reaches_the_required_ap_passes(finished):
    cfg, _, _ = finished
    cfg = cfg.clone()
    cfg.DISTILL.TEACHER.MIN_AP, cfg.DISTILL.TEACHER.CHECK_IMAGES = 99.0, 3
    register_datasets(cfg)
    perfect = Perfect(cfg.DATASETS.TEST[0])
    require_teacher_ap(cfg, Teacher(perfect, "RGB"))
    assert perfect.seen == list(perfect.truth)[:3]


def test_a_run_that_diverges_names_iteration_and_tap_and_leaves_its_checkpoints(finished, tmp_path):
    cfg, _, _ = finished
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.SOLVER.CHECKPOINT_PERIOD, cfg.DISTILL.MGD.LOSS_WEIGHTS = 1, [0.05, 1e38, 0.05]
    result = train_net(cfg, tmp_path, check=False)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "iteration=0" in line
    assert re.search(r"'loss_mgd_res4': \S*inf", line)
    assert not re.search(r"'loss_mgd_res3': \S*inf", line)
    assert "Traceback" not in result.stderr


def test_a_finished_run_is_the_next_runs_teacher(finished, tmp_path):
    cfg, run, _ = finished
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(run / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(run / "model_final.pth")
    cfg.SOLVER.MAX_ITER = 1
    cfg.DISTILL.BASELINE = str(run)
    output = train_net(cfg, tmp_path).stdout
    assert (tmp_path / "run/model_final.pth").exists()
    assert "the teacher's AP there is " in output
    assert "the AP of the student alone is " in output


def test_two_ranks_train_and_solve_the_matching_of_one(finished, tmp_path):
    """torchrun on CPU: statistics are summed over the ranks, so both solve what one process solves."""
    cfg, _run, _ = finished
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 1, ()
    cfg.SOLVER.IMS_PER_BATCH = 4  # batch norm wants two images on each rank
    config = write(cfg, tmp_path / "run.yaml")
    run_tool(*torchrun(TRAIN_NET, "--config-file", config, "--num-gpus", 0))
    cfg.OUTPUT_DIR = str(tmp_path / "single")
    train_net(cfg, tmp_path)
    states = [
        checkpoint(tmp_path / name)["trainer"]["hooks"]["RematchHook"]["mgd"]["_extra_state"]["matchings"]
        for name in ("run", "single")
    ]
    for tap in ("res3", "res4", "res5"):
        assert torch.equal(states[0][tap]["groups"], states[1][tap]["groups"])


STOCK_TRAINING = """
import sys
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_setup

config, name, annotations, root = sys.argv[1:]
register_coco_instances(name, {}, annotations, root)
cfg = get_cfg()
cfg.merge_from_file(config)
default_setup(cfg, None)
trainer = DefaultTrainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
"""


def test_disabled_training_equals_stock_detectron2_bit_for_bit(student_cfg, tmp_path):
    """Four iterations with two loader workers: our command against stock code, a process each."""
    student_cfg.DATASETS.TEST = ()
    student_cfg.SOLVER.OPTIMIZER = "SGD"
    student_cfg.DATALOADER.NUM_WORKERS = 2
    train_net(student_cfg, tmp_path)

    stock_cfg = student_config(student_cfg)
    stock_cfg.OUTPUT_DIR = str(tmp_path / "stock")
    config = write(stock_cfg, tmp_path / "stock.yaml")
    run_tool("-c", STOCK_TRAINING, config, *student_cfg.DATASETS.REGISTER[0])

    ours, stock = metrics(tmp_path / "run")[-1], metrics(tmp_path / "stock")[-1]
    timings = {name for name in stock if "time" in name or "eta" in name}
    assert {"loss_cls", "loss_box_reg", "total_loss", "num_pos_anchors", "lr"} <= set(stock)
    assert set(ours) == set(stock)
    assert all(ours[name] == stock[name] for name in set(stock) - timings)
    for name in ("model_0000001.pth", "model_final.pth"):
        a, b = checkpoint(tmp_path / "run", name), checkpoint(tmp_path / "stock", name)
        assert list(a["model"]) == list(b["model"])
        assert all(torch.equal(a["model"][k], v) for k, v in b["model"].items())


def test_distilling_keeps_data_order_and_task_losses_of_the_first_step(mgd_cfg):
    """Neither teacher, nor method, nor matching pass draws from the training's random streams."""
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()
    mgd_cfg.SOLVER.MAX_ITER = 1

    def first_losses(cfg):
        default_setup(cfg, None)
        trainer = Trainer(cfg)
        assert isinstance(trainer.model, DistilledDetector)
        trainer.train()
        return {n: trainer.storage.history(n).latest() for n in ("loss_cls", "loss_box_reg")}

    distilled = first_losses(mgd_cfg)
    mgd_cfg.DISTILL.ENABLED = False
    assert first_losses(mgd_cfg) == distilled
