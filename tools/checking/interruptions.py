"""Checks of what ends a run from outside: signals, a full disk, a kill of several processes, another run."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
from checking.checks import ONE_AGENT, PERIOD, check_start, next_start
from checking.jobs import Job, equal_values, final, run, train_net
from commandline import Figures
from processes import LIMIT, Failed, Word

from mgd_det.run.metrics import read_metrics

EXACT: tuple[Word, ...] = ("DISTILL.EXACT_RESUME", True, "SEED", 3)
ENDLESS: tuple[Word, ...] = ("SOLVER.MAX_ITER", 100000, "SOLVER.CHECKPOINT_PERIOD", 100000)
ROOM = 2**20  # bytes, in which the logs of a short run fit and a checkpoint does not


def signals(config: Path, folder: Path) -> Figures:
    """Three trainings with DISTILL.EXACT_RESUME receive SIGTERM, SIGINT and SIGHUP. Each must write a
    checkpoint, exit with 128 plus the number of the signal and, resumed for two iterations, equal an
    undisturbed run bit for bit.
    """
    figures: Figures = {}
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        name = signal.Signals(number).name
        command = train_net(config, folder / name, "--resume", *EXACT)
        with Job(folder / f"{name}.log", *command, *ENDLESS) as job:
            job.until(lambda: "eta:" in job.output(), "it received the signal")
            job.process.send_signal(number)
            if (code := job.process.wait(LIMIT)) != 128 + number:
                raise job.failed(f"exit code {code} after {name}")
        start = next_start(folder / name)
        end = ("SOLVER.MAX_ITER", start + 2)
        check_start(run(folder / f"{name}_resumed.log", *command, *end), start)
        alone = folder / f"{name}_alone"
        run(folder / f"{name}_alone.log", *train_net(config, alone, *EXACT, *end))
        equal_values(final(folder / name), final(alone))
        figures[f"exit code after {name}"] = code
    return figures


def full_disk(config: Path, folder: Path) -> Figures:
    """The size of files that a training may write is limited (RLIMIT_FSIZE), so that its next checkpoint
    finds no room. It must say so, leave no part of a file, and go on once there is room again; its end must
    equal that of an undisturbed run, bit for bit.
    """
    keys = (*EXACT, "SOLVER.CHECKPOINT_PERIOD", PERIOD, "SOLVER.MAX_ITER", 5 * PERIOD)
    output = folder / "run"
    with Job(folder / "run.log", *train_net(config, output, *keys)) as job:
        job.until(lambda: job.saved(), "it had written a checkpoint")
        limits = psutil.Process(job.process.pid)
        limits.rlimit(psutil.RLIMIT_FSIZE, (ROOM, psutil.RLIM_INFINITY))
        job.until(lambda: "trying again in" in job.output(), "a checkpoint found no room")
        left = len(list(output.glob("*.partial")))
        next_start(output)  # the last checkpoint is whole
        limits.rlimit(psutil.RLIMIT_FSIZE, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))
        job.finish()
    if left:
        raise Failed("the file that found no room was left in part")
    run(folder / "alone.log", *train_net(config, folder / "alone", *keys))
    equal = equal_values(final(output), final(folder / "alone"))
    return {"attempts that failed": job.output().count("trying again in"), "values equal bit for bit": equal}


def ranks_resume(config: Path, folder: Path) -> Figures:
    """A training of two processes with DISTILL.EXACT_RESUME is killed (SIGKILL, all its processes) and
    started again by the same command. It must go on from its last checkpoint, and its end must equal that of
    an undisturbed training of two processes, bit for bit.
    """
    keys = (*EXACT, "SOLVER.CHECKPOINT_PERIOD", PERIOD, "SOLVER.IMS_PER_BATCH", 4)
    end = ("SOLVER.MAX_ITER", 5 * PERIOD)
    output = folder / "run"
    command = (*ONE_AGENT, 2, *train_net(config, output, "--resume", *keys, *end))
    with Job(folder / "killed.log", *command) as job:
        job.until(lambda: len(job.saved()) > 1, "it was killed")
    start = next_start(output)
    check_start(run(folder / "resumed.log", *command), start)
    alone = folder / "alone"
    run(folder / "alone.log", *ONE_AGENT, 2, *train_net(config, alone, *keys, *end))
    return {
        "resumed at iteration": start,
        "values equal bit for bit": equal_values(final(output), final(alone)),
    }


def evaluation_kill(config: Path, folder: Path) -> Figures:
    """A training with DISTILL.EXACT_RESUME is killed (SIGKILL) during an evaluation and started again by the
    same command. In the end its checkpoint and its last AP must equal those of an undisturbed run.
    """
    every = (
        "SOLVER.CHECKPOINT_PERIOD",
        PERIOD,
        "TEST.EVAL_PERIOD",
        2 * PERIOD,
        "SOLVER.MAX_ITER",
        3 * PERIOD,
    )
    keys = (*EXACT, *every, "DATASETS.TEST", ("selfcheck",))
    output = folder / "run"
    command = train_net(config, output, "--resume", *keys)
    with Job(folder / "killed.log", *command) as job:
        job.until(lambda: "Start inference on" in job.output(), "it was killed")
    start = next_start(output)
    check_start(run(folder / "resumed.log", *command), start)
    run(folder / "alone.log", *train_net(config, folder / "alone", *keys))
    last = [read_metrics(path / "metrics.json")[-1] for path in (output, folder / "alone")]
    equal_values(*({k: v for k, v in line.items() if k.startswith("bbox/")} for line in last))
    equal = equal_values(final(output), final(folder / "alone"))
    return {"resumed at iteration": start, "values equal bit for bit": equal}


def concurrent_runs(config: Path, folder: Path) -> Figures:
    """While a training is under way, the same command is started again. The second one must end with exit
    code 2 and one line, and the first must go on as if nothing had happened, until it is asked to end.
    """
    output = folder / "run"
    command = train_net(config, output, "--resume", *ENDLESS)
    with Job(folder / "first.log", *command) as first:
        first.until(lambda: "eta:" in first.output(), "the other one was started")
        with Job(folder / "second.log", *command) as second:
            code = second.process.wait(LIMIT)
        before = first.output().count("eta:")
        first.until(lambda: first.output().count("eta:") > before, "it had gone on")
        first.process.send_signal(signal.SIGTERM)
        first.process.wait(LIMIT)
    if code != 2 or "Traceback" in second.output():
        raise second.failed(f"exit code {code}, not 2 and one line")
    return {"exit code of the second": code, "iterations of the first": next_start(output)}
