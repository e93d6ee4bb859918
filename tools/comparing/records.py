"""The records of finished runs: runs.jsonl beside the report, one line of JSON for each run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from commandline import Record
from comparing.experiment import Run, changed
from filelock import FileLock

from mgd_det.config import load_config
from mgd_det.errors import ConfigError

REMEDY = "Delete its line to run it anew, or restore the settings."
# It says how files are read, and a run's own config cannot say that of itself.
NO_SETTING = "DISTILL.UNSAFE_LOADING"


def append_record(path: Path, record: Record) -> None:
    """Append a record as one line, which is on the disk when this returns.

    Several processes may append to the same file. What a killed one left of a line is cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"), path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        unfinished = content[content.rfind(b"\n") + 1 :]
        if unfinished and not is_record(unfinished):
            file.truncate(len(content) - len(unfinished))
            unfinished = b""
        file.write((b"\n" if unfinished else b"") + json.dumps(record).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_file(path: Path) -> dict[tuple[str, int], Record]:
    """Returns the records in a file by arm and seed; of several for one run, the last.

    Raises:
        ConfigError: a line is not a record. An unfinished last line is left out instead.
    """
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    records = {}
    for number, line in enumerate(lines, 1):
        if is_record(line):
            record = json.loads(line)
            records[record["arm"], record["seed"]] = record
        elif line.strip() and line.endswith(b"\n"):
            problem = f"line {number} is not the record of a run"
            raise ConfigError("results", str(path), problem, "Delete that line, or restore it.")
    return records


def is_record(line: bytes) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and {"arm", "seed", "settings"} <= record.keys()


def read_records(runs: Sequence[Run]) -> dict[str, Record]:
    """Returns the records of those runs that are finished, by the run's name.

    Raises:
        ConfigError: a file holds something else, or a run was made with other settings.
    """
    files = {path: read_file(path) for path in {run.records for run in runs}}
    found = {}
    for run in runs:
        record = files[run.records].get((run.arm.name, run.seed))
        if record is not None:
            check_settings("results", run.records, str(run), record["settings"], run.settings, REMEDY)
            found[run.name] = record
    return found


def check_files(run: Run, record: Record) -> None:
    """Raises ConfigError if the record was made with another teacher, other weights or other data."""
    differing = [path for path, then in record["files"].items() if run.files.get(path, then) != then]
    if differing:
        problem = f"{run} was made with another {' and '.join(differing)}"
        remedy = "Copy the experiment, and name 'results' and 'output' folders of your own in it."
        raise ConfigError("results", str(run.records), problem, remedy)


def check_unfinished(run: Run) -> None:
    """Raises ConfigError if an unfinished run began with other settings."""
    if (run.output / "last_checkpoint").exists():
        remedy = "Delete or rename that folder to start anew, or restore the settings."
        path, functions = str(run.output / "config.yaml"), run.settings.get("DISTILL.CONFIG_FUNCTIONS", [])
        started = changed(load_config(path, key="output", trusted=False, functions=functions))
        check_settings("output", run.output, str(run), started, run.settings, remedy)


def check_settings(key: str, path: Path, run: str, then: Record, now: Record, remedy: str) -> None:
    """Raises ConfigError, which names the differences, if two runs have different settings."""
    differing = [
        f"{name} was {then.get(name, 'the default')!r} and is {now.get(name, 'the default')!r}"
        for name in sorted((then.keys() | now.keys()) - {NO_SETTING})
        if name not in then or name not in now or then[name] != now[name]
    ]
    if differing:
        problem = f"{run} was made with other settings: {'; '.join(differing)}"
        raise ConfigError(key, str(path), problem, remedy)
