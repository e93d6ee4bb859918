"""A training that is asked to end writes a checkpoint first: real processes, real signals."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch
from helpers.commands import ROOT, run_tool, started, torchrun

TRAIN_NET = ROOT / "tools/train_net.py"
PATIENCE = 300  # seconds


def wait_for(text: str, log: Path, process) -> None:
    deadline = time.monotonic() + PATIENCE
    while text not in log.read_text():
        assert process.exitcode is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


@pytest.fixture
def endless(mgd_cfg, tmp_path):
    """The command of a training that writes no checkpoint by itself, and does not end."""
    mgd_cfg.SOLVER.MAX_ITER = mgd_cfg.SOLVER.CHECKPOINT_PERIOD = 100000
    mgd_cfg.DATASETS.TEST, mgd_cfg.DISTILL.EXACT_RESUME, mgd_cfg.SEED = (), True, 3
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    return [TRAIN_NET, "--config-file", tmp_path / "run.yaml", "--num-gpus", "0"]


def end_of(process) -> int | None:
    """Wait for a process; returns its exit code, None if it does not end."""
    process.join(PATIENCE)
    return process.exitcode


def last_checkpoint(run: Path) -> dict:
    return torch.load(run / (run / "last_checkpoint").read_text(), weights_only=True)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_a_training_with_a_checkpoint(name, endless, tmp_path):
    """And, resumed, it equals one that was left alone."""
    number, run, log = getattr(signal, name), tmp_path / "run", tmp_path / "log"
    with started(log, *endless) as process:
        wait_for("eta:", log, process)
        os.kill(process.pid, number)
        assert end_of(process) == 128 + number
    saved = last_checkpoint(run)
    done = saved["iteration"] + 1
    assert (run / "last_checkpoint").read_text() == f"model_{saved['iteration']:07d}.pth"
    assert done >= 20  # the first line with an eta
    assert f"{name}: training ends after iteration {saved['iteration']}" in log.read_text()
    assert "Traceback" not in log.read_text()
    output = run_tool(*endless, "--resume", "SOLVER.MAX_ITER", done + 2).stdout
    assert f"Starting training from iteration {done}" in output
    if name == "SIGTERM":
        run_tool(*endless, "OUTPUT_DIR", tmp_path / "alone", "SOLVER.MAX_ITER", done + 2)
        resumed, alone = (last_checkpoint(folder)["model"] for folder in (run, tmp_path / "alone"))
        assert all(torch.equal(resumed[name], value) for name, value in alone.items())


def test_an_ignored_signal_stays_ignored(endless, tmp_path):
    """SIGHUP under nohup."""
    log = tmp_path / "log"
    with started(log, *endless, ignored=[signal.SIGHUP]) as process:
        wait_for("iter: 19 ", log, process)
        os.kill(process.pid, signal.SIGHUP)
        wait_for("iter: 59 ", log, process)
        assert process.exitcode is None


LONG_STEP = """
import sys, time
from detectron2.engine import default_setup
from mgd_det import Trainer
from mgd_det.config import load_config
from mgd_det.data.datasets import register_datasets

class Slow(Trainer):
    def run_step(self):
        print("in a step", flush=True)
        time.sleep(600)

cfg = load_config(sys.argv[1])
register_datasets(cfg)
trainer = Slow(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
"""


def test_a_second_signal_ends_it_at_once(endless, tmp_path):
    """Within two seconds it is still the same request, as of a terminal and a launcher that pass it on."""
    log = tmp_path / "log"
    with started(log, "-c", LONG_STEP, endless[2]) as process:
        wait_for("in a step", log, process)
        for _ in range(3):
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.2)
        time.sleep(2.5)
        assert process.exitcode is None
        os.kill(process.pid, signal.SIGTERM)
        assert end_of(process) == -signal.SIGTERM


def test_two_ranks_end_after_the_same_step(endless, tmp_path):
    """Of which one alone receives the signal."""
    run, log = tmp_path / "run", tmp_path / "log"
    with started(log, *torchrun(*endless, "SOLVER.IMS_PER_BATCH", 4)) as process:
        wait_for("eta:", log, process)
        os.kill(rank_of(process, 1), signal.SIGTERM)
        assert end_of(process) != 0
    saved = last_checkpoint(run)["iteration"]
    for name in ("log.txt", "log.txt.rank1"):
        assert f"SIGTERM: training ends after iteration {saved}" in (run / name).read_text()
    command = torchrun(*endless, "--resume", "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", saved + 2)
    assert f"Starting training from iteration {saved + 1}" in run_tool(*command).stdout
    normalizers = last_checkpoint(run)["trainer"]["hooks"]["ExactResumeHook"]["normalizers"]
    assert len(normalizers) == 2


def rank_of(agent, rank: int) -> int:
    """Returns the process id of a rank that torchrun has started."""
    children = psutil.Process(agent.pid).children()
    return sorted(children, key=lambda child: child.create_time())[rank].pid
