"""A run destroys neither what it reads nor what an earlier run left, and has its folder to itself."""

from __future__ import annotations

import errno
import logging
import os
import re
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from helpers.commands import ROOT, run_tool, started
from helpers.detectors import small_config

from mgd_det.errors import ConfigError
from mgd_det.run.main import argument_parser, main
from mgd_det.run.output import claimed, take_lock

TRAIN_NET = ROOT / "tools/train_net.py"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def start(tmp_path, capsys):
    """Start a config in this process; returns the exit code and what was written to stderr."""

    def start(cfg, *arguments) -> tuple[int, str]:
        (tmp_path / "run.yaml").write_text(cfg.dump())
        command = ["--config-file", str(tmp_path / "run.yaml"), "--num-gpus", "0", *map(str, arguments)]
        try:
            main(argument_parser("").parse_args(command))
        except SystemExit as error:
            return int(error.code), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return start


@pytest.fixture
def own_teacher(mgd_cfg, teacher_run, tmp_path) -> Path:
    """A copy of the teacher's folder without a checkpoint's usual name, set in `mgd_cfg`."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    (folder / "config.yaml").write_bytes((teacher_run / "config.yaml").read_bytes())
    (folder / "weights.pth").write_bytes((teacher_run / "model_final.pth").read_bytes())
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = str(folder / "config.yaml")
    mgd_cfg.DISTILL.TEACHER.WEIGHTS = str(folder / "weights.pth")
    return folder


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--start-over"]])
@pytest.mark.parametrize("key", ["DISTILL.TEACHER.CONFIG_FILE", "DISTILL.TEACHER.WEIGHTS"])
def test_the_teachers_folder_is_refused(key, flags, mgd_cfg, own_teacher, teacher_run, start, tmp_path):
    """By another spelling of its path, and whichever of the two files lies there."""
    (tmp_path / "link").symlink_to(own_teacher)
    mgd_cfg.OUTPUT_DIR = str(tmp_path / "link/../teacher/.")
    other = {
        "DISTILL.TEACHER.CONFIG_FILE": ["DISTILL.TEACHER.WEIGHTS", str(teacher_run / "model_final.pth")],
        "DISTILL.TEACHER.WEIGHTS": ["DISTILL.TEACHER.CONFIG_FILE", str(teacher_run / "config.yaml")],
    }
    mgd_cfg.merge_from_list(other[key])
    before = contents(own_teacher)
    code, error = start(mgd_cfg, *flags)
    assert code == 2
    assert error.startswith("error: OUTPUT_DIR = ")
    assert f"is the folder of {key} {own_teacher}" in error
    assert "Name another OUTPUT_DIR." in error
    assert len(error.splitlines()) == 1
    assert contents(own_teacher) == before


def test_a_link_to_the_teachers_weights_does_not_hide_their_folder(mgd_cfg, own_teacher, start, tmp_path):
    (tmp_path / "weights.pth").symlink_to(own_teacher / "weights.pth")
    (own_teacher / "config.yaml").rename(tmp_path / "config.yaml")
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = str(tmp_path / "config.yaml")
    mgd_cfg.DISTILL.TEACHER.WEIGHTS = str(tmp_path / "weights.pth")
    mgd_cfg.OUTPUT_DIR = str(own_teacher)
    assert "is the folder of DISTILL.TEACHER.WEIGHTS" in start(mgd_cfg)[1]


@pytest.mark.parametrize(
    ("flags", "way_out"), [([], "--resume continues the run in it."), (["--resume"], "Name another")]
)
def test_the_folder_of_the_initial_weights_is_refused(flags, way_out, mgd_cfg, own_teacher, start):
    """With --resume as well where there is nothing to resume."""
    mgd_cfg.DISTILL.ENABLED = False
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = mgd_cfg.DISTILL.TEACHER.WEIGHTS = ""
    mgd_cfg.MODEL.WEIGHTS, mgd_cfg.OUTPUT_DIR = str(own_teacher / "weights.pth"), str(own_teacher)
    code, error = start(mgd_cfg, *flags)
    assert code == 2
    assert "is the folder of MODEL.WEIGHTS" in error
    assert way_out in error


@pytest.fixture
def finished(demo_data, tmp_path, start):
    """The config of a run of one iteration, which has ended."""
    cfg = small_config(demo_data, tmp_path / "run", "SOLVER.MAX_ITER", 1)
    assert start(cfg)[0] == 0
    return cfg


def test_the_baselines_folder_is_refused(finished, mgd_cfg, start, tmp_path):
    mgd_cfg.DISTILL.BASELINE = mgd_cfg.OUTPUT_DIR
    before = contents(tmp_path / "run")
    for flags in ([], ["--resume"], ["--start-over"]):
        code, error = start(mgd_cfg, *flags)
        assert code == 2
        assert "is the folder of DISTILL.BASELINE" in error
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("left", ["last_checkpoint", "model_0000004.pth", "metrics.json"])
def test_an_earlier_run_is_not_overwritten(left, student_cfg, start, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / left).write_text("earlier work")
    code, error = start(student_cfg)
    assert code == 2
    assert f"error: OUTPUT_DIR = '{tmp_path}/run': holds {left} of an earlier run" in error
    for way_out in ("--resume", "another OUTPUT_DIR", "--start-over"):
        assert way_out in error
    assert contents(tmp_path / "run") == {left: b"earlier work"}


def test_starting_over_keeps_the_old_files_and_the_users_own(finished, tmp_path):
    run = tmp_path / "run"
    (run / "notes.txt").write_text("mine")
    (run / "teacher").mkdir()  # of an --eval-teacher, which holds for the next run, too
    before = contents(run)
    for number in (1, 2):
        run_tool(TRAIN_NET, "--config-file", tmp_path / "run.yaml", "--num-gpus", 0, "--start-over")
        log = (run / "log.txt").read_text()
        assert f"the files of the earlier run are in {run}/earlier_{number}" in log
        assert torch.load(run / "model_final.pth", weights_only=True)["iteration"] == 0
        # One line of the iteration, one of the evaluation.
        assert len((run / "metrics.json").read_text().splitlines()) == 2
    kept = contents(run / "earlier_1")
    assert {"config.yaml", "metrics.json", "log.txt", "model_final.pth", "last_checkpoint"} <= set(kept)
    assert {name: before[name] for name in kept} == kept
    assert (run / "notes.txt").read_text() == "mine"
    assert (run / "teacher").is_dir()
    assert (run / "earlier_2/model_final.pth").exists()


@pytest.mark.parametrize("flag", ["--resume", "--eval-only", "--eval-teacher"])
def test_starting_over_is_for_training(flag, student_cfg, mgd_cfg, start):
    code, error = start(mgd_cfg, "--start-over", flag)
    assert code == 2
    assert "error: --start-over = True: does not go with --resume" in error


def test_a_resume_of_nothing_says_so(student_cfg, start, tmp_path):
    student_cfg.SOLVER.MAX_ITER = 1
    assert start(student_cfg, "--resume")[0] == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert f"--resume: OUTPUT_DIR {tmp_path}/run holds no checkpoint to resume from; starting from" in log
    assert start(student_cfg, "--resume")[0] == 0
    assert (tmp_path / "run/log.txt").read_text().count("holds no checkpoint to resume from") == 1


@pytest.mark.parametrize("flags", [[], ["--resume"], ["--eval-teacher"]])
def test_a_folder_in_use_is_refused(flags, mgd_cfg, start, tmp_path):
    (tmp_path / "run").mkdir()
    with FileLock(tmp_path / "run/.lock"):
        code, error = start(mgd_cfg, *flags)
    assert code == 2
    assert "OUTPUT_DIR" in error
    assert "another run is using this folder" in error
    assert os.listdir(tmp_path / "run") == [".lock"]


@pytest.mark.parametrize("error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError("flock")])
def test_a_file_system_without_locks_is_used_with_a_warning(error, tmp_path, caplog):
    class Lock(FileLock):
        """Ends as filelock's do on such a file system, which of them depends on the version."""

        def acquire(self, *args, **kwargs):
            raise error

    with caplog.at_level(logging.WARNING, "detectron2"):
        take_lock(Lock(tmp_path / ".lock"), str(tmp_path))
    assert "its file system has no locks" in caplog.text


def test_a_checkpoint_that_another_run_wrote_meanwhile_is_not_lost(student_cfg, tmp_path):
    """A job that is started again while the old one still writes its last checkpoint."""
    run = tmp_path / "run"
    run.mkdir()
    args = argument_parser("").parse_args(["--resume"])
    for name in ("model_0000001.pth", "model_0000003.pth"):
        (run / name).write_text("")
        (run / "last_checkpoint").write_text(name)
    refused = pytest.raises(ConfigError, match=r"OUTPUT_DIR.*another run has written.*Start this one again")
    with refused, claimed(student_cfg, args, str(run / "model_0000001.pth")):
        raise AssertionError("it began")
    with claimed(student_cfg, args, str(run / "model_0000003.pth")) as aside:
        assert aside == ""


def test_a_killed_run_does_not_hold_its_folder(student_cfg, tmp_path):
    """Two real processes, with loader processes, which outlive a kill for some seconds."""
    student_cfg.SOLVER.MAX_ITER, student_cfg.SOLVER.CHECKPOINT_PERIOD = 100000, 1
    student_cfg.DATALOADER.NUM_WORKERS, student_cfg.DATASETS.TEST = 1, ()
    (tmp_path / "run.yaml").write_text(student_cfg.dump())
    command = [TRAIN_NET, "--config-file", tmp_path / "run.yaml", "--num-gpus", "0", "--resume"]
    with started(tmp_path / "log", *command) as first:
        deadline = time.monotonic() + 300
        while not (tmp_path / "run/last_checkpoint").exists():
            assert first.exitcode is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        config = (tmp_path / "run/config.yaml").read_bytes()
        second = run_tool(*command, "SOLVER.BASE_LR", 0.5, check=False)
        assert second.returncode == 2
        assert "another run is using this folder" in second.stderr.splitlines()[-1]
        assert (tmp_path / "run/config.yaml").read_bytes() == config
        assert first.exitcode is None
        first.kill()  # and not its loader processes
        first.join()
    last = (tmp_path / "run/last_checkpoint").read_text()
    reached = torch.load(tmp_path / "run" / last, weights_only=True)["iteration"] + 1
    output = run_tool(*command, "SOLVER.MAX_ITER", reached + 1).stdout
    assert f"Starting training from iteration {reached}" in output


@pytest.mark.parametrize("left", ["last_checkpoint", "model_0000004.pth"])
def test_an_evaluation_of_the_teacher_leaves_a_training_in_its_folder_alone(left, mgd_cfg, start, tmp_path):
    (tmp_path / "run/teacher").mkdir(parents=True)
    (tmp_path / "run/teacher" / left).write_text("earlier work")
    code, error = start(mgd_cfg, "--eval-teacher")
    assert code == 2
    assert f"OUTPUT_DIR = '{tmp_path}/run': {tmp_path}/run/teacher/{left} is of a training" in error
    assert contents(tmp_path / "run") == {f"teacher/{left}": b"earlier work"}


@pytest.mark.parametrize("key", ["CONFIG_FILE", "WEIGHTS"])
def test_an_evaluation_of_the_teacher_leaves_its_own_files_alone(
    key, mgd_cfg, own_teacher, teacher_run, start, tmp_path
):
    """They lie where the evaluation would write, under names that no training gives."""
    mgd_cfg.OUTPUT_DIR = str(tmp_path)  # whose folder `teacher` is the teacher's
    other = {
        "CONFIG_FILE": ["DISTILL.TEACHER.WEIGHTS", str(teacher_run / "model_final.pth")],
        "WEIGHTS": ["DISTILL.TEACHER.CONFIG_FILE", str(teacher_run / "config.yaml")],
    }
    mgd_cfg.merge_from_list(other[key])
    before = contents(own_teacher)
    code, error = start(mgd_cfg, "--eval-teacher")
    assert code == 2
    assert re.search(rf"OUTPUT_DIR = '{tmp_path}': {own_teacher}/\S+ is of a training", error)
    assert contents(own_teacher) == before


def test_a_resume_without_the_name_of_the_checkpoint(student_cfg, start, tmp_path):
    """A kill may leave the first checkpoint before its name; of several ones none is chosen."""
    student_cfg.SOLVER.MAX_ITER, student_cfg.DATASETS.TEST = 1, ()
    assert start(student_cfg)[0] == 0
    (tmp_path / "run/model_0000000.pth").unlink(missing_ok=True)
    (tmp_path / "run/last_checkpoint").unlink()
    student_cfg.SOLVER.MAX_ITER = 2
    assert start(student_cfg, "--resume")[0] == 0
    log = (tmp_path / "run/log.txt").read_text()
    assert "Starting training from iteration 1" in log
    (tmp_path / "run/last_checkpoint").unlink()
    (tmp_path / "run/model_0000001.pth").write_bytes((tmp_path / "run/model_final.pth").read_bytes())
    code, error = start(student_cfg, "--resume")
    assert code == 2
    assert "it holds model_0000001.pth, model_final.pth, and no file last_checkpoint" in error


def test_a_checkpoint_of_another_student_is_not_resumed(student_cfg, start, tmp_path):
    student_cfg.SOLVER.MAX_ITER, student_cfg.DATASETS.TEST = 1, ()
    assert start(student_cfg)[0] == 0
    before = contents(tmp_path / "run")
    student_cfg.SOLVER.MAX_ITER, student_cfg.MODEL.FPN.OUT_CHANNELS = 2, 24
    code, error = start(student_cfg, "--resume")
    assert code == 2
    assert "it is of another" in error and "Resume with the MODEL keys of that run" in error
    assert {name: before[name] for name in ("config.yaml", "student_config.yaml")} == {
        name: (tmp_path / "run" / name).read_bytes() for name in ("config.yaml", "student_config.yaml")
    }
