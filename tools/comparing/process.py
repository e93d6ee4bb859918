"""One run under way: its process, its progress, and what it measured."""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

from comparing.runs import Run
from processes import Failed, Process

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

    def measured(self) -> dict[str, Any]:
        """Returns the figures of the finished run.

        Raises:
            Failed: it did not finish, or has no AP.
        """
        if self.process.returncode:
            tail = "\n".join(self.output().splitlines()[-TAIL:])
            raise Failed(f"exit code {self.process.returncode}; the end of {self.log}:\n{tail}")
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
