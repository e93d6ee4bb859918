"""Commands in processes of their own, of which none outlives its check."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

from checking import Failed

LIMIT = 600  # seconds that any process may take
PATIENCE = 120  # seconds that what a job started may outlive it


class Job:
    """A Python command, its output in a file. Leaving the `with` block kills it and all that it started."""

    def __init__(self, log: Path, *command: Any) -> None:
        self.log, self.started, token = log, time.time(), uuid.uuid4().hex
        self.mark = f"SELFCHECK={token}"  # in the environment of all its processes
        # Threads that wait by spinning would starve the other processes.
        ours = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "SELFCHECK": token}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **ours},
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.process.kill()
        self.process.wait(LIMIT)
        deadline = time.monotonic() + PATIENCE
        while (left := self.pids()) and time.monotonic() < deadline:  # again, for those just being started
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def pids(self, *marks: str) -> list[int]:
        """Its live processes, orphans included; with `marks`, those that have them in their environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if {self.mark, *marks} <= set(path.read_text(errors="replace").split("\0")):
                    found.append(int(path.parent.name))
        return found

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def began_at(self) -> int | None:
        """The iteration that its training began at; None while it has not."""
        found = re.search(r"Starting training from iteration (\d+)", self.output())
        return int(found[1]) if found else None

    def saved(self) -> list[int]:
        """The iterations at whose end it began to write a checkpoint."""
        return [int(i) for i in re.findall(r"saving checkpoint to \S+_(\d+)\.pth", self.output())]

    def failed(self, what: str) -> Failed:
        return Failed(f"{what}; {self.log} ends in: " + " / ".join(self.output().splitlines()[-3:]))

    def until(self, ready: Callable[[], Any], what: str) -> None:
        """Wait for what must happen before the command ends."""
        deadline = time.monotonic() + LIMIT
        while not ready():
            if self.process.poll() is not None:
                raise self.failed(f"ended with exit code {self.process.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self.failed(f"{LIMIT} s went by before {what}")
            time.sleep(0.002)

    def finish(self) -> Job:
        """Wait for its end, which must be a good one."""
        if code := self.process.wait(LIMIT):
            raise self.failed(f"exit code {code}")
        return self


def run(log: Path, *command: Any) -> Job:
    with Job(log, *command) as job:
        return job.finish()
