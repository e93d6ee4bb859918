"""A run that is killed and resumed equals one that was left alone: real processes, real SIGKILL."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import ROOT, run_tool, small_config

from mgd_det.datasets import register_datasets
from mgd_det.errors import ConfigError
from mgd_det.exact import ExactLoader, SampleOrder, check_sampler, seed_all

TRAIN_NET = ROOT / "tools/train_net.py"


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
    loader = ExactLoader(student_cfg)
    loader.start = 1
    found = [x["image"].float().mean().item() for batch in islice(loader, 3) for x in batch]
    assert torch.equal(torch.get_rng_state(), state)
    student_cfg.DATALOADER.NUM_WORKERS = 0
    expected = [x["image"].float().mean().item() for b in islice(ExactLoader(student_cfg), 4) for x in b]
    assert found == expected[2:]


def test_another_sampler_is_refused(student_cfg):
    student_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    with pytest.raises(ConfigError, match=r"SAMPLER_TRAIN.*EXACT_RESUME False"):
        check_sampler(student_cfg)


def exact_config(data, teacher_run, output: Path, mode: str) -> Path:
    cfg = small_config(data, output, "DATASETS.TEST", (), "SEED", -1)
    cfg.DISTILL.ENABLED = cfg.DISTILL.EXACT_RESUME = True
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher_run / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher_run / "model_final.pth")
    cfg.DISTILL.MGD.UPDATE.MODE, cfg.DISTILL.MGD.UPDATE.ONLINE_EVERY = mode, 2
    cfg.DISTILL.MGD.UPDATE.PERIOD = 5
    cfg.DATALOADER.ASPECT_RATIO_GROUPING, cfg.DATALOADER.NUM_WORKERS = True, 1
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 42, 4
    path = output.with_suffix(".yaml")
    path.write_text(cfg.dump())
    return path


def run_until_killed(command: list[str], seconds: float) -> int:
    """Start a run, SIGKILL it so long after its training began; its exit code."""
    env = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    killer = threading.Timer(seconds, process.send_signal, [signal.SIGKILL])
    for line in process.stdout:
        if "Starting training from iteration" in line and not killer.is_alive():
            killer.start()
    process.wait()
    killer.cancel()
    return process.returncode


def logged(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "time" not in k and "seconds" not in k} for line in lines]


@pytest.mark.parametrize("mode", ["pass", "online"])
def test_killed_and_resumed_equals_uninterrupted(mode, demo_data, teacher_run, tmp_path):
    """The drawn seed (SEED -1) is taken over, for the uninterrupted run by hand."""
    killed = tmp_path / "killed"
    config = exact_config(demo_data, teacher_run, killed, mode)
    command = [sys.executable, str(TRAIN_NET), "--config-file", str(config), "--num-gpus", "0", "--resume"]
    moments = random.Random(mode)
    for _ in range(3 if mode == "pass" else 2):
        if run_until_killed(command, moments.uniform(0.5, 4)) == 0:
            break
    run_tool(*command[1:])

    from mgd_det.config import load_config

    seed = load_config(str(killed / "config.yaml")).SEED
    assert seed >= 0
    alone = tmp_path / "alone"
    config = exact_config(demo_data, teacher_run, alone, mode)
    run_tool(TRAIN_NET, "--config-file", config, "--num-gpus", 0, "SEED", seed)

    a, b = (torch.load(folder / "model_final.pth", weights_only=True) for folder in (killed, alone))
    assert all(torch.equal(a["model"][k], v) for k, v in b["model"].items())
    ours, theirs = (x["trainer"]["hooks"]["RematchHook"]["mgd"] for x in (a, b))
    for tap, matching in theirs["_extra_state"]["matchings"].items():
        assert torch.equal(ours["_extra_state"]["matchings"][tap]["groups"], matching["groups"])
        assert torch.equal(ours["_extra_state"]["matchings"][tap]["margin"], matching["margin"])
    assert logged(killed) == logged(alone)
    assert {19, 39, 41} <= {line["iteration"] for line in logged(alone)}
