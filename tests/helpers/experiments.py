"""Experiment files and records of finished runs, and calls of `tools/compare.py` in this process."""

from __future__ import annotations

from pathlib import Path

import compare
import pytest
import yaml

from helpers.commands import ROOT


def record(arm: str, seed: int, ap: float, seconds: float = 0.2, **others) -> dict:
    measured = {"AP": ap, "AP50": 2 * ap, "seconds_per_iteration": seconds}
    memory = {"peak_memory_mib": 1000, "peak_gpu_memory_mib": None}
    made = {
        "date": f"2020-02-0{seed}",
        "machine": "toaster",
        "versions": {"torch": "2", "detectron2": "0.6"},
    }
    return {"arm": arm, "seed": seed, **measured, **memory, **made, **others}


def experiment(tmp_path: Path, **changes) -> Path:
    """An experiment file; None leaves a key out."""
    document = {
        **{"config": "configs/demo/student_mgd.yaml", "results": str(tmp_path / "results")},
        **{"output": str(tmp_path / "output"), "iterations": 300, "seeds": [11, 12]},
        **{"baseline": "alone", "arms": {"alone": ["DISTILL.ENABLED", False], "mgd": []}},
        **changes,
    }
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in document.items() if v is not None}, sort_keys=False))
    return path


def run_compare(capsys, monkeypatch, *arguments) -> tuple[int, str, str]:
    """Exit code and output of the tool."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        compare.main([str(argument) for argument in arguments])
    return (ended.value.code, *capsys.readouterr())


def error_of(capsys, monkeypatch, *arguments) -> str:
    """The one line that the tool ends in."""
    code, out, error = run_compare(capsys, monkeypatch, *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1)
    return error
