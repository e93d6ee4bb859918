"""The files of `tools/gpu_check.py`: what each stage has found, and what the documents take from them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator
from pathlib import Path

from _checkout import ROOT
from commandline import Figures, circumstances_in_words, commit

RESULTS = ROOT / "results/gpu"
MEASURED = (
    "speed",
    "steps",
    "teacher",
)  # stages of tools/benchmark.py; docs/performance.md has their figures
CHECKED = ("correctness", "tools", "ranks")  # those of docs/reliability.md
SAME = ("machine", "versions", "code", "device", "tiny")  # what an earlier record must have in common


def new_record(device: str, tiny: bool) -> Figures:
    """Returns the record of a stage of which nothing has been run."""
    return {
        "command": "tools/gpu_check.py",
        **circumstances_in_words(platform.system(), gpus=None if device == "cuda" else 0),
        "commit": commit(),
        "code": digest_of_code(),
        "device": device,
        "tiny": tiny,
        "results": {},
    }


def digest_of_code() -> str:
    """Returns the start of the SHA-256 of all Python files; a copy without git has no other version."""
    digest = hashlib.sha256()
    for folder in ("mgd_det", "tests", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read_or_new(file: Path, new: Figures) -> Figures:
    """Returns the record in a file, if it is of the same machine, versions and code; else the new one."""
    earlier = json.loads(file.read_text()) if file.exists() else {}
    return earlier if all(earlier.get(key) == new[key] for key in SAME) else new


def measured(folder: Path = RESULTS) -> list[Figures]:
    """Returns the records of tools/benchmark.py."""
    found = records(folder, MEASURED)
    return [part["figures"] for record in found for part in record["results"].values() if part["passed"]]


def checked(folder: Path = RESULTS) -> list[Figures]:
    """Returns a record of the checks in the form of tools/selfcheck.py, if there are any."""
    found = list(records(folder, CHECKED))
    if not found:
        return []
    results = {name: part for record in found for name, part in record["results"].items()}
    return [{**found[0], "results": results}]


def records(folder: Path, stages: tuple[str, ...]) -> Iterator[Figures]:
    """Yields the records of those stages that have been run at full size on a GPU."""
    for stage in stages:
        if (folder / f"{stage}.json").exists():
            record = json.loads((folder / f"{stage}.json").read_text())
            if record["device"] == "cuda" and not record["tiny"]:
                yield record
