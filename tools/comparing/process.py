"""One run under way: its process, its progress, and what it measured."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from comparing.runs import Run

DETECTIONS = "inference/coco_instances_results.json"  # of the last evaluation, from Detectron2
TAIL = 15  # lines of a failed run's output that are shown


class Failed(Exception):
    """A run that gave no result; the text says why."""


class Process:
    """A run under way, in a session of its own, which a terminal's Ctrl-C does not reach.

    `gpus`, as CUDA_VISIBLE_DEVICES has them, are its own; "" leaves it to the environment.
    All its processes hold the lock on its console file: a run that outlived this tool is not started twice.

    Raises:
        Failed: such a run goes on.
    """

    def __init__(self, run: Run, gpus: str, environment: Mapping[str, str]) -> None:
        run.output.mkdir(parents=True, exist_ok=True)
        if gpus:
            environment = {**environment, "CUDA_VISIBLE_DEVICES": gpus}
        self.run, self.gpus, self.console = run, gpus, run.output / "console.txt"
        self.began = time.monotonic()
        self.peak_memory_mib = 0.0
        with self.console.open("a") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failed(f"an earlier start still runs in {run.output}: wait for it or end it") from None
            out.truncate(0)
            self.process = subprocess.Popen(
                [sys.executable, *run.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def ended(self) -> bool:
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_memory_mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return True

    def kill(self) -> None:
        """At once: checkpoints are written aside, so this leaves the last one whole."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def output(self) -> str:
        return self.console.read_text(errors="replace")

    def iterations(self) -> tuple[int, int]:
        """Where this start began, and how many of the run's iterations are done."""
        output = self.output()
        first = re.search(r"Starting training from iteration (\d+)", output)
        start = int(first[1]) if first else 0
        printed = re.findall(r" iter: (\d+) ", output)
        return start, int(printed[-1]) + 1 if printed else start

    def measured(self) -> dict[str, Any]:
        """What the finished run found, and what it took.

        Raises:
            Failed: it did not finish, or has no AP.
        """
        if self.process.returncode:
            tail = "\n".join(self.output().splitlines()[-TAIL:])
            raise Failed(f"exit code {self.process.returncode}; the end of {self.console}:\n{tail}")
        lines = [json.loads(line) for line in (self.run.output / "metrics.json").read_text().splitlines()]
        length = self.run.arm.iterations
        # By iterations done; the last evaluation is logged behind the last iteration.
        evaluations = {min(line["iteration"] + 1, length): line for line in lines if "bbox/AP" in line}
        if length not in evaluations:
            raise Failed(f"it was not evaluated at its end; see {self.console}")
        last = evaluations[length]
        if not math.isfinite(last["bbox/AP"]):
            if json.loads((self.run.output / DETECTIONS).read_text()):
                raise Failed(f"no AP: there was nothing to detect; see {self.console}")
            last = dict.fromkeys(last, 0.0)  # without a detection Detectron2 says NaN
            evaluations[length] = last
        seconds = [line["time"] for line in lines if "time" in line]
        gpu_memory = [int(mib) for mib in re.findall(r"max_mem: (\d+)M", self.output())]
        return {
            **{name: last[f"bbox/{name}"] for name in ("AP", "AP50", "AP75")},
            "AP_by_iteration": {
                str(i): line["bbox/AP"] if math.isfinite(line["bbox/AP"]) else None
                for i, line in sorted(evaluations.items())
            },
            "seconds_per_iteration": statistics.median(seconds) if seconds else None,
            "peak_memory_mib": round(self.peak_memory_mib),
            "peak_gpu_memory_mib": max(gpu_memory, default=0) or None,
            # Of the start that finished it, which an interruption makes the later part of the run.
            "seconds": round(self.seconds(), 1),
            "resumed_from": self.iterations()[0],
        }
