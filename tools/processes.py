"""Python commands in processes of their own, their output in a file."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Union

if TYPE_CHECKING:
    from typing_extensions import Self

Word = Union[str, float, Path, tuple[Union[str, float], ...]]  # of a command line, which holds its str()

# Threads that wait by spinning would starve the other processes.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
LIMIT = 600  # seconds that a process may take
GRACE = 20  # seconds to end in, once that is over
POLL_SECONDS = 0.2


def _default_signals() -> None:
    """Undo what a background shell or nohup makes this process ignore, and its children with it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Failed(Exception):
    """A command or a check failed; the text says how."""


class Process:
    """A Python command under way, in a session of its own, which a terminal's Ctrl-C does not reach.

    Its processes inherit the lock on the log. A command that outlived the tool which started it is so
    found by the next start; filelock's locks end with the process that took them.

    Args:
        log: file that receives the output.
        command: arguments of Python.
        environment: variables that it gets besides those of this process.

    Raises:
        Failed: a command that writes to this log still runs.
    """

    def __init__(self, log: Path, *command: Word, environment: Mapping[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log, self.started = log, time.time()
        with log.open("a") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failed(f"an earlier start still runs in {log.parent}: wait for it or end it") from None
            out.truncate(0)
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
                start_new_session=True,
                preexec_fn=_default_signals,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill all processes of the command's session."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(LIMIT)

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def lines(self) -> Iterator[str]:
        """Yields the lines of the output as they are written, until the command ends."""
        with self.log.open(errors="replace") as file:
            line, running = "", True
            while running or line:
                running = self.process.poll() is None
                line = file.readline()
                if line:
                    yield line.rstrip("\n")
                else:
                    time.sleep(POLL_SECONDS)

    def began_at(self) -> int | None:
        """Returns the iteration that training began at, None if it has not begun."""
        found = re.search(r"Starting training from iteration (\d+)", self.output())
        return int(found[1]) if found else None

    def failed(self, what: str) -> Failed:
        """Returns an error that quotes the end of the output."""
        return Failed(f"{what}; {self.log} ends in: " + " / ".join(self.output().splitlines()[-3:]))

    def until(self, ready: Callable[[], object], what: str) -> None:
        """Wait until `ready()` holds.

        Raises:
            Failed: the command ends before, or it takes too long.
        """
        deadline = time.monotonic() + LIMIT
        while not ready():
            if self.process.poll() is not None:
                raise self.failed(f"ended with exit code {self.process.returncode} before {what}")
            if time.monotonic() > deadline:
                raise self.failed(f"{LIMIT} s went by before {what}")
            time.sleep(0.002)

    def finish(self, seconds: float = LIMIT) -> Self:
        """Wait until the command ends.

        Raises:
            Failed: its exit code is not 0, or it takes longer.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.terminate()  # so that it can end what it has started
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
            raise self.failed(f"not finished after {seconds:.0f} s") from None
        if code:
            raise self.failed(f"exit code {code}")
        return self


def call(
    *command: Word, environment: Mapping[str, str] | None = None, capture: bool = False
) -> tuple[int, str]:
    """Run a Python command to its end; returns its exit code and, if captured, what it printed."""
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    return result.returncode, result.stdout or ""
