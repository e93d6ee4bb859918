"""Running the repository's scripts, in this process and in others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_tool(*command, cwd=None, check=True, env=()) -> subprocess.CompletedProcess:
    """Run a Python command of the repository in a process of its own."""
    result = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE", **dict(env)},
        capture_output=True,
        text=True,
    )
    if check and result.returncode:
        raise AssertionError(
            f"exit code {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
        )
    return result
