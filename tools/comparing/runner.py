"""Running what is not finished, some at a time, and telling how far it is."""

from __future__ import annotations

import itertools
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

import torch
from _checkout import ROOT
from detectron2 import __version__ as detectron2_version

from comparing.process import Failed, Process
from comparing.runs import Run

INTERRUPTED = 128 + signal.SIGINT  # exit code, as a shell has it
POLL_SECONDS = 0.2
PROGRESS_SECONDS = 30


class Runner:
    """Runs what is not finished, some at a time, and adds to the records.

    Args:
        runs: those to have, in order.
        records: of all finished runs, by name; those of this start are added.
        jobs: how many run at a time.
        gpus: that each uses.
    """

    def __init__(self, runs: Sequence[Run], records: dict[str, dict[str, Any]], jobs: int, gpus: int) -> None:
        self.waiting = [run for run in runs if run.name not in records]
        self.total, self.records, self.jobs = len(runs), records, jobs
        self.running: list[Process] = []
        self.free = shares(visible_gpus(), jobs, gpus)
        self.failed = 0
        self.commit = code_version()
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        cores = os.cpu_count() or 1
        if jobs > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(cores // jobs, 1)))
            self.environment.setdefault("OMP_WAIT_POLICY", "passive")
        gpu = f"{gpus} x {torch.cuda.get_device_name()}" if gpus else "no GPU used"
        threads = self.environment.get("OMP_NUM_THREADS")
        share = f"runs at a time: {jobs}" + (f", threads of each: {threads}" if threads else "")
        self.machine = f"{platform.machine()}, {cores} CPU cores, {gpu}; {share}"

    def run(self) -> int:
        """All of them, to the end; the exit code."""
        signals: list[int] = []  # received; looked at where no process is just being started
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as under nohup
                signal.signal(number, lambda number, _: signals.append(number))
        say(f"{self.total} runs, {self.total - len(self.waiting)} of them finished")
        reported = time.monotonic()
        try:
            while (self.waiting or self.running) and not signals:
                while self.waiting and len(self.running) < self.jobs and not signals:
                    self.start(self.waiting.pop(0))
                time.sleep(POLL_SECONDS)
                for process in list(self.running):
                    if process.ended():
                        self.running.remove(process)
                        self.free.append(process.gpus)
                        self.finish(process)
                if time.monotonic() - reported > PROGRESS_SECONDS:
                    reported = time.monotonic()
                    for process in self.running:
                        done = process.iterations()[1]
                        say(f"  {process.run}: iteration {done}/{process.run.arm.iterations}")
                    say(f"  {self.progress()}")
        finally:
            for process in self.running:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if signals:
            say("interrupted: the same command goes on from the last checkpoints; --report-only reports")
            return INTERRUPTED
        return 1 if self.failed else 0

    def start(self, run: Run) -> None:
        gpus = self.free.pop(0)
        try:
            self.running.append(Process(run, gpus, self.environment))
        except Failed as reason:
            self.free.append(gpus)
            self.fail(run, reason)
        else:
            say(f"{run}: begins; {self.progress()}")

    def finish(self, process: Process) -> None:
        run = process.run
        try:
            found = process.measured()
        except Failed as reason:
            self.fail(run, reason)
            return
        record = {
            **{"arm": run.arm.name, "seed": run.seed, "iterations": run.arm.iterations, **found},
            "date": date.today().isoformat(),
            "machine": self.machine,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "detectron2": detectron2_version,
            },
            "commit": self.commit,
            "command": shlex.join(["python", *run.command]),
            "overrides": run.arm.overrides,
            "settings": run.settings,
            "files": run.files,
        }
        run.result.parent.mkdir(parents=True, exist_ok=True)
        aside = run.result.with_suffix(".partial")
        aside.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(aside, run.result)
        self.records[run.name] = record
        say(f"{run}: AP {record['AP']:.2f} in {clock(process.seconds())}; {self.progress()}")

    def fail(self, run: Run, reason: Failed) -> None:
        self.failed += 1
        say(f"{run}: failed: {reason}\n{self.progress()}")

    def progress(self) -> str:
        """How many runs are done, and the time that the others will take."""
        speeds: dict[str, list[float]] = {}
        for record in self.records.values():
            done = record["iterations"] - record["resumed_from"]
            if record["machine"] == self.machine and done:
                speeds.setdefault(record["arm"], []).append(record["seconds"] / done)
        left = [(run.arm.name, run.arm.iterations) for run in self.waiting]
        for process in self.running:
            start, done = process.iterations()
            arm = process.run.arm
            left.append((arm.name, arm.iterations - done))
            if done > start:
                speeds.setdefault(arm.name, []).append(process.seconds() / (done - start))
        seconds = time_left(speeds, left, self.jobs)
        remaining = "time left unknown" if seconds is None else f"about {clock(seconds)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        done = self.total - len(self.waiting) - len(self.running) - self.failed
        return f"{done} of {self.total} runs done{failed}, {remaining}"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return [name.strip() for name in named[:count]] if named[0] else [str(n) for n in range(count)]


def shares(visible: Sequence[str], jobs: int, each: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each of the runs that go on at a time: GPUs of its own, as far as they go."""
    wanted = itertools.cycle(visible) if visible else itertools.repeat("")
    return [",".join(itertools.islice(wanted, each)) for _ in range(jobs)]


def code_version() -> str:
    """The commit of the repository, and whether its files differ from it; "unknown" outside of git."""
    git = ("git", "-C", str(ROOT))
    try:
        found = [
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (
                ("rev-parse", "--short=10", "HEAD"),
                ("status", "--porcelain", "mgd_det", "tools"),
            )
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{found[0]} and changes" if found[1] else found[0]


def time_left(
    speeds: Mapping[str, Sequence[float]], left: Sequence[tuple[str, int]], jobs: int
) -> float | None:
    """Seconds until all runs are done; None while no speed is known.

    Args:
        speeds: seconds per iteration, all told, of the runs of each arm, as far as known. An arm without
            any is taken to be like the others.
        left: arm and missing iterations of each run that is not done.
        jobs: how many run at a time.
    """
    known = {arm: statistics.median(values) for arm, values in speeds.items()}
    if not known:
        return None
    typical = statistics.median(known.values())
    seconds = [known.get(arm, typical) * iterations for arm, iterations in left]
    return max([sum(seconds) / jobs, *seconds])


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
