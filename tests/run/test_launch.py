"""Several processes: how their errors end, and a run of them that stops its losses and is resumed."""

from __future__ import annotations

import os
import shutil
import signal
import time

import pytest
import torch
from helpers.commands import ROOT, run_tool, started, torchrun

from mgd_det.errors import ConfigError
from mgd_det.run.main import argument_parser
from mgd_det.run.preflight import preflight

# Detectron2's launcher insists on CUDA; beside that it does this, with fresh processes where these are forked
# from a server of their own. Both give a process its work as a pickle.
SPAWNED = """
import importlib
import sys
import torch.multiprocessing as mp
from mgd_det.errors import ConfigError
from mgd_det.run import launch

main = importlib.import_module("mgd_det.run.main")

def spawn(job, num_gpus, args, **_):
    mp.start_processes(worker, nprocs=num_gpus, args=(job, args), start_method="forkserver")

def worker(rank, job, args):
    main.run = fail
    job(*args)

def fail(cfg, args):
    if args.num_gpus == 2:
        raise ConfigError("KEY", 1, "wrong", "Do better.")
    raise FloatingPointError("iteration=3")

if __name__ == "__main__":
    from types import SimpleNamespace
    launch.launch_gpus = spawn
    args = SimpleNamespace(num_gpus=int(sys.argv[1]), num_machines=1, machine_rank=0, dist_url="auto")
    launch.launch(main.run_process, None, args)
"""


@pytest.mark.parametrize(
    ("processes", "code", "message"),
    [(2, 2, "error: KEY = 1: wrong. Do better."), (3, 1, "error: iteration=3. The checkpoints")],
)
def test_an_error_in_a_spawned_process_is_a_line_and_an_exit_code(processes, code, message, tmp_path):
    (tmp_path / "spawned.py").write_text(SPAWNED)
    result = run_tool(tmp_path / "spawned.py", processes, check=False)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture
def third_of_three(monkeypatch):
    """This process as torchrun's third, before it has joined the others."""
    for name, value in {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": 3, "LOCAL_RANK": 2}.items():
        monkeypatch.setenv(name, str(value))


def checked(cfg, folder, *flags: str) -> None:
    (folder / "run.yaml").write_text(cfg.dump())
    preflight(
        argument_parser("").parse_args(["--config-file", str(folder / "run.yaml"), "--num-gpus", "0", *flags])
    )


def test_an_evaluation_shares_no_batch(third_of_three, student_cfg, tmp_path):
    student_cfg.SOLVER.IMS_PER_BATCH = 4
    with pytest.raises(ConfigError, match="does not divide among 3 processes"):
        checked(student_cfg, tmp_path)
    checked(student_cfg, tmp_path, "--eval-only")


def test_the_first_process_of_a_machine_looks_at_the_data(third_of_three, student_cfg, tmp_path, monkeypatch):
    (tmp_path / "test.json").write_text("[]")
    student_cfg.DATASETS.REGISTER = [["looked_at_once", str(tmp_path / "test.json"), str(tmp_path)]]
    student_cfg.DATASETS.TEST = ("looked_at_once",)
    checked(student_cfg, tmp_path, "--eval-only")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match="is not in COCO format"):
        checked(student_cfg, tmp_path, "--eval-only")


WAITING = """
import signal
import sys
import time
import torch.multiprocessing as mp
from types import SimpleNamespace
from mgd_det.run import launch

def spawn(job, num_gpus, args, **_):
    mp.spawn(worker, nprocs=num_gpus, args=(job, args))

def worker(rank, job, args):
    job(rank, *args)

def wait(rank, cfg, args):
    signal.signal(signal.SIGTERM, lambda number, frame: finish(rank, number))
    print(f"{rank} waits", flush=True)
    time.sleep(600)

def finish(rank, number):
    signal.signal(number, signal.SIG_IGN)
    print(f"{rank} writes a checkpoint", flush=True)
    sys.exit(128 + number)

if __name__ == "__main__":
    launch.launch_gpus = spawn
    launch.launch(wait, None, SimpleNamespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto"))
"""


def test_a_signal_to_the_launcher_reaches_the_spawned_processes(tmp_path):
    """Which write a checkpoint before they end."""
    (tmp_path / "waiting.py").write_text(WAITING)
    log = tmp_path / "log"
    with started(log, tmp_path / "waiting.py", stderr=tmp_path / "errors") as process:
        while len(log.read_text().splitlines()) < 2:
            assert process.exitcode is None, (tmp_path / "errors").read_text()
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
        process.join(300)
        assert process.exitcode == 128 + signal.SIGTERM
    lines = log.read_text().splitlines()
    assert sorted(lines[:2]) == ["0 waits", "1 waits"]
    assert sorted(lines[2:]) == ["0 writes a checkpoint", "1 writes a checkpoint"]


def test_two_ranks_stop_their_losses_and_resume_bit_for_bit(mgd_cfg, tmp_path):
    """Norms, adapters and random positions of several methods, under DDP without find_unused_parameters."""
    mgd_cfg.DISTILL.METHODS = ["mgd", "imitation", "pkd", "cwd", "masked_generation", "logits", "crosskd"]
    mgd_cfg.DISTILL.IMITATION.ADAPTER = "always"
    mgd_cfg.DISTILL.SCHEDULE.STOP_ITER, mgd_cfg.SOLVER.MAX_ITER = 2, 4
    mgd_cfg.DISTILL.EXACT_RESUME, mgd_cfg.DATASETS.TEST = True, ()
    mgd_cfg.SOLVER.IMS_PER_BATCH, mgd_cfg.SOLVER.CHECKPOINT_PERIOD = 4, 1
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    train = torchrun(ROOT / "tools/train_net.py", "--config-file", tmp_path / "run.yaml", "--num-gpus", 0)
    run_tool(*train)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copy(tmp_path / "run/model_0000000.pth", resumed)
    (resumed / "last_checkpoint").write_text("model_0000000.pth")
    output = run_tool(*train, "--resume", "OUTPUT_DIR", resumed).stdout
    assert "Starting training from iteration 1" in output
    whole, parts = (torch.load(folder / "model_final.pth") for folder in (tmp_path / "run", resumed))
    assert all(torch.equal(parts["model"][name], value) for name, value in whole["model"].items())
    losses = whole["trainer"]["hooks"]["ExactResumeHook"]["scalars"]
    methods = (
        "mgd_res3",
        "imitation_p3",
        "pkd_p3",
        "cwd_p3",
        "masked_generation_p3",
        "logits_cls",
        "crosskd_box",
    )
    for name in (f"loss_{name}" for name in methods):
        values = [value for value, _ in losses[name]["data"]]
        assert values == [
            value for value, _ in parts["trainer"]["hooks"]["ExactResumeHook"]["scalars"][name]["data"]
        ]
        assert min(values[:2]) > 0 and values[2:] == [0, 0]


def test_the_checkpoint_must_be_the_same_for_all_processes(mgd_cfg, tmp_path):
    """Two processes with folders of their own, of which one has a checkpoint, as on two machines."""
    mgd_cfg.DATASETS.TEST, mgd_cfg.SOLVER.MAX_ITER, mgd_cfg.SOLVER.IMS_PER_BATCH = (), 1, 4
    (tmp_path / "run.yaml").write_text(mgd_cfg.dump())
    script = tmp_path / "own_folders.py"
    script.write_text(
        "import os, sys\n"
        "from mgd_det.run import argument_parser, main\n"
        "sys.argv += ['OUTPUT_DIR', f'{sys.argv.pop()}/{os.environ[\"RANK\"]}']\n"
        "main(argument_parser('').parse_args())\n"
    )
    arguments = ["--config-file", tmp_path / "run.yaml", "--num-gpus", 0]
    run_tool(ROOT / "tools/train_net.py", *arguments, "OUTPUT_DIR", tmp_path / "0")
    arguments += ["--resume", "SOLVER.MAX_ITER", 2, tmp_path]
    result = run_tool(*torchrun(script, *arguments), check=False)
    assert result.returncode != 0
    assert "its last checkpoint is of iteration [-1, 0], depending on the machine" in result.stderr
    assert "Name a folder that all machines share." in result.stderr
