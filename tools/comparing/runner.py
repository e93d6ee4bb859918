"""Runs under way: their processes, their progress and what they measured."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
from commandline import Figures, circumstances, commit, say
from comparing.experiment import Run
from comparing.records import Record, append_record
from processes import GRACE, POLL_SECONDS, Failed, Process

from mgd_det.run.metrics import read_metrics

DETECTIONS = "inference/coco_instances_results.json"  # of the last evaluation, from Detectron2
TAIL = 15  # lines of a failed run's output that are shown


class RunProcess(Process):
    """The process of a run.

    Args:
        run: the run.
        gpus: its GPUs, as CUDA_VISIBLE_DEVICES has them; "" leaves them to the environment.
        environment: variables that it gets besides those of this process.
    """

    def __init__(self, run: Run, gpus: str, environment: Mapping[str, str]) -> None:
        if gpus:
            environment = {**environment, "CUDA_VISIBLE_DEVICES": gpus}
        self.run, self.gpus = run, gpus
        self.began = time.monotonic()
        self.peak_memory_mib = 0.0
        super().__init__(run.output / "console.txt", *run.command, environment=environment)

    def ended(self) -> bool:
        """Returns True once the run has ended; its peak memory is then known."""
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_memory_mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return True

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def iterations(self) -> tuple[int, int]:
        """Returns the iteration that this start began at, and how many of the run's iterations are done."""
        start = self.began_at() or 0
        printed = re.findall(r" iter: (\d+) ", self.output())
        return start, int(printed[-1]) + 1 if printed else start

    def state(self) -> str:
        """Returns in words how far it is."""
        return f"iteration {self.iterations()[1]}/{self.run.arm.iterations}"

    def measured(self) -> Figures:
        """Returns the figures of the finished run.

        Raises:
            Failed: it did not finish, or has no AP.
        """
        self.check_exit()
        lines = read_metrics(self.run.output / "metrics.json")
        last, by_iteration = self.evaluations(lines)
        seconds = [line["time"] for line in lines if "time" in line]
        gpu_memory = [int(mib) for mib in re.findall(r"max_mem: (\d+)M", self.output())]
        return {
            **{name: last[f"bbox/{name}"] for name in ("AP", "AP50", "AP75")},
            "AP_by_iteration": by_iteration,
            "seconds_per_iteration": statistics.median(seconds) if seconds else None,
            "peak_memory_mib": round(self.peak_memory_mib),
            "peak_gpu_memory_mib": max(gpu_memory, default=0) or None,
            # Of the start that finished it, which an interruption makes the later part of the run.
            "seconds": round(self.seconds(), 1),
            "resumed_from": self.iterations()[0],
        }

    def check_exit(self) -> None:
        """Raises Failed, with the end of its output, if the process did not end well."""
        if self.process.returncode:
            tail = "\n".join(self.output().splitlines()[-TAIL:])
            raise Failed(f"exit code {self.process.returncode}; the end of {self.log}:\n{tail}")

    def evaluations(self, lines: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, float | None]]:
        """Returns the scalars of the evaluation at the end, and AP by the number of iterations done.

        Raises:
            Failed: the run was not evaluated at its end, or there was nothing to detect.
        """
        length = self.run.arm.iterations
        # The last evaluation is logged behind the last iteration.
        found = {min(int(line["iteration"]) + 1, length): line for line in lines if "bbox/AP" in line}
        if length not in found:
            raise Failed(f"it was not evaluated at its end; see {self.log}")
        if not math.isfinite(found[length]["bbox/AP"]):
            if json.loads((self.run.output / DETECTIONS).read_text()):
                raise Failed(f"no AP: there was nothing to detect; see {self.log}")
            found[length] = dict.fromkeys(found[length], 0.0)  # without a detection Detectron2 says NaN
        aps = {i: line["bbox/AP"] for i, line in sorted(found.items())}
        return found[length], {str(i): ap if math.isfinite(ap) else None for i, ap in aps.items()}


INTERRUPTED = 128 + signal.SIGINT  # exit code, as a shell has it
PROGRESS_SECONDS = 30


class Runner:
    """Runs what is not finished, several runs at a time, and adds their records.

    Args:
        runs: all runs to have, in order.
        records: of the finished runs, by name; those of this start are added.
        jobs: number of runs at a time.
        gpus: number of GPUs that each run uses.
        process: what a run is made by.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        records: dict[str, Record],
        jobs: int,
        gpus: int,
        process: type[RunProcess] = RunProcess,
    ) -> None:
        self.process = process
        self.waiting = [run for run in runs if run.name not in records]
        self.total, self.records, self.jobs = len(runs), records, jobs
        self.running: list[RunProcess] = []
        self.free = shares(visible_gpus(), jobs, gpus)
        self.failed = 0
        self.environment: dict[str, str] = {}
        threads = os.environ.get("OMP_NUM_THREADS")
        if jobs > 1:
            threads = threads or str(max((os.cpu_count() or 1) // jobs, 1))
            policy = os.environ.get("OMP_WAIT_POLICY", "passive")
            self.environment = {"OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": policy}
        share = f"; runs at a time: {jobs}" + (f", threads of each: {threads}" if threads else "")
        self.circumstances = circumstances(gpus=gpus)
        self.circumstances["machine"] += share
        self.commit = commit()

    def run(self) -> int:
        """Run all of them to the end; returns the exit code."""
        say(f"{self.total} runs, {self.total - len(self.waiting)} of them finished")
        reported = time.monotonic()
        with received_signals() as signals:
            try:
                while (self.waiting or self.running) and not signals:
                    while self.waiting and len(self.running) < self.jobs and not signals:
                        self.start(self.waiting.pop(0))
                    time.sleep(POLL_SECONDS)
                    self.collect()
                    if time.monotonic() - reported > PROGRESS_SECONDS:
                        reported = time.monotonic()
                        self.report()
            finally:
                self.end(signals)
        if signals:
            say("interrupted: the same command goes on from the last checkpoints; --report-only reports")
            return INTERRUPTED
        return 1 if self.failed else 0

    def end(self, signals: Sequence[int]) -> None:
        """End the runs under way, which write a checkpoint before they do.

        Those that need more than GRACE seconds are killed, and so are all as soon as a second signal comes.
        The checkpoints are written aside, so that this leaves the last one whole.
        """
        deadline, ending = time.monotonic() + GRACE, self.running
        for process in ending:
            os.kill(process.process.pid, signal.SIGTERM)
        while ending and len(signals) < 2 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            ending = [process for process in ending if not process.ended()]
        for process in self.running:
            process.kill()  # what is left of it

    def collect(self) -> None:
        """Take the results of the runs that have ended."""
        for process in list(self.running):
            if process.ended():
                self.running.remove(process)
                self.free.append(process.gpus)
                self.finish(process)

    def report(self) -> None:
        """Print the progress of each run that is under way."""
        for process in self.running:
            say(f"  {process.run}: {process.state()}")
        say(f"  {self.progress()}")

    def start(self, run: Run) -> None:
        gpus = self.free.pop(0)
        try:
            self.running.append(self.process(run, gpus, self.environment))
        except Failed as reason:
            self.free.append(gpus)
            self.fail(run, reason)
        else:
            say(f"{run}: begins; {self.progress()}")

    def finish(self, process: RunProcess) -> None:
        run = process.run
        try:
            found = process.measured()
        except Failed as reason:
            self.fail(run, reason)
            return
        record: Record = {
            **{"arm": run.arm.name, "seed": run.seed, "iterations": run.arm.iterations, **found},
            **self.circumstances,
            "commit": self.commit,
            "command": shlex.join(["python", *run.command]),
            "overrides": run.arm.overrides,
            "settings": run.settings,
            "files": run.files,
        }
        append_record(run.records, record)
        self.records[run.name] = record
        say(f"{run}: AP {record['AP']:.2f} in {clock(process.seconds())}; {self.progress()}")

    def fail(self, run: Run, reason: Failed) -> None:
        self.failed += 1
        say(f"{run}: failed: {reason}\n{self.progress()}")

    def progress(self) -> str:
        """Returns a text with the number of finished runs and the time that the others will take."""
        speeds: dict[str, list[float]] = {}
        for record in self.records.values():
            done = record["iterations"] - record["resumed_from"]
            if record["machine"] == self.circumstances["machine"] and done:
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


@contextmanager
def received_signals() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP in a list instead of ending at once.

    An ignored signal stays ignored, as SIGHUP is under nohup, and SIGINT in the background of a script.
    """
    received: list[int] = []
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, _: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def visible_gpus() -> list[str]:
    """Returns the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    count = torch.cuda.device_count()
    return [name.strip() for name in named[:count]] if named[0] else [str(n) for n in range(count)]


def shares(visible: Sequence[str], jobs: int, each: int) -> list[str]:
    """Returns CUDA_VISIBLE_DEVICES for each run of those at a time: GPUs of its own, as far as they go."""
    wanted = itertools.cycle(visible) if visible else itertools.repeat("")
    return [",".join(itertools.islice(wanted, each)) for _ in range(jobs)]


def time_left(
    speeds: Mapping[str, Sequence[float]], left: Sequence[tuple[str, int]], jobs: int
) -> float | None:
    """Returns the seconds until all runs are done, None while no speed is known.

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
