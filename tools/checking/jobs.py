"""Commands of which no process outlives its check."""

from __future__ import annotations

import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

import psutil
from processes import ONE_THREAD, Process, Word

PATIENCE = 120  # seconds that what a job started may outlive it
MARK = "SELFCHECK"  # variable in the environment of all processes of a job


class Job(Process):
    """A Python command. Leaving the `with` block kills it and all that it started."""

    def __init__(self, log: Path, *command: Word) -> None:
        self.mark = uuid.uuid4().hex
        super().__init__(log, *command, environment={**ONE_THREAD, MARK: self.mark})

    def kill(self) -> None:
        """Kill all of its processes, also those that left its session."""
        super().kill()
        deadline = time.monotonic() + PATIENCE
        # Again and again, for those that are just being started.
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)

    def processes(self, **variables: str) -> list[psutil.Process]:
        """Returns its live processes, orphans included, that have these variables in their environment."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if {MARK: self.mark, **variables}.items() <= process.environ().items():
                    found.append(process)
        return found

    def saved(self) -> list[int]:
        """Returns the iterations at whose end it began to write a checkpoint."""
        return [int(i) for i in re.findall(r"saving checkpoint to \S+_(\d+)\.pth", self.output())]


def run(log: Path, *command: Word) -> Job:
    """Run a command to its end, which must be a good one."""
    with Job(log, *command) as job:
        return job.finish()
