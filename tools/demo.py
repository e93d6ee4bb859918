#!/usr/bin/env python
"""The main job in small: train a teacher, then a student without and with it, and compare.

Everything is real: Detectron2, RetinaNet R-50 and R-18, COCO box AP on an embedded COCO-format data set.
What is already there is reused.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _checkout import ROOT

DATA = Path("datasets/demo")
OUTPUT = Path("output/demo")
RUNS = {"teacher": "teacher R-50", "student": "student R-18", "student_mgd": "student R-18 + MGD"}
REFERENCE = Path("results/demo.json")  # what this command measured, committed
TOLERANCE = 0.8  # of the reference; below it something is wrong

# Of a run's output, the lines that tell how far it is; all of it is in its log.txt.
PROGRESS = (" eta: ", "matching ", "Inference done", "error")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  tools/demo.py\n  rm -r output/demo && tools/demo.py   (train anew)",
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the figures there, as JSON")
    args = parser.parse_args()
    os.chdir(ROOT)
    run("tools/make_demo_data.py", "--out", DATA)
    results = {name: train(name) for name in RUNS}
    run(
        *("tools/draw_detections.py", "--annotations", DATA / "annotations/val.json"),
        *("--images", DATA / "val", "--out", OUTPUT / "detections.png", "--results"),
        *(f"{title}={detections(name)}" for name, title in RUNS.items()),
    )
    say(table(results))
    say(f"detections side by side: {OUTPUT / 'detections.png'}")
    say(f"the student, for stock Detectron2: {OUTPUT / 'student_mgd'}/model_final.pth, student_config.yaml")
    if args.record:
        args.record.write_text(json.dumps(record(results), indent=2) + "\n")
    warn_if_low(results, json.loads(REFERENCE.read_text())["results"])


def run(*command: Any) -> None:
    """Run a script of this repository, in its own process."""
    subprocess.run([sys.executable, *map(str, command)], check=True)


def detections(name: str) -> Path:
    return OUTPUT / name / "inference/coco_instances_results.json"


def train(name: str) -> dict[str, float]:
    """Train one run, unless it is there; its AP, AP50 and training time in seconds."""
    result_file = OUTPUT / name / "demo_result.json"
    if result_file.exists():
        say(f"{RUNS[name]}: reusing {OUTPUT / name}")
        return json.loads(result_file.read_text())
    say(f"{RUNS[name]}: training, log in {OUTPUT / name}/log.txt")
    start = time.monotonic()
    command = ["tools/train_net.py", "--config-file", f"configs/demo/{name}.yaml"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}  # progress as it is made
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    assert process.stdout is not None
    output = []
    for line in process.stdout:
        output.append(line)
        if any(mark in line for mark in PROGRESS):
            say(line.rstrip())
    if process.wait():
        say("".join(output[-30:]))
        sys.exit(f"error: training {RUNS[name]} failed with exit code {process.returncode}")
    metrics = [json.loads(line) for line in (OUTPUT / name / "metrics.json").read_text().splitlines()]
    last = next(m for m in reversed(metrics) if "bbox/AP" in m)
    result = {"AP": last["bbox/AP"], "AP50": last["bbox/AP50"], "seconds": time.monotonic() - start}
    result_file.write_text(json.dumps(result))
    return result


def record(results: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The figures, and where they come from."""
    import torch
    from detectron2 import __version__ as detectron2_version

    return {
        "command": "make demo",
        "seed": "SEED 1 in configs/demo/base.yaml, data of seed 0",
        "data": "datasets/demo, val split: 300 images",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores, no GPU used",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "detectron2": detectron2_version,
        },
        "results": results,
    }


def table(results: dict[str, dict[str, float]]) -> str:
    lines = ["", f"{'':22}{'AP':>8}{'AP50':>8}{'time':>10}"]
    for name, r in results.items():
        minutes, seconds = divmod(round(r["seconds"]), 60)
        lines.append(f"{RUNS[name]:22}{r['AP']:8.1f}{r['AP50']:8.1f}{minutes:7d}:{seconds:02d}")
    return "\n".join([*lines, ""])


def warn_if_low(results: dict[str, dict[str, float]], reference: dict[str, dict[str, float]]) -> None:
    for name, result in results.items():
        reached, expected, folder = result["AP"], reference[name]["AP"], OUTPUT / name
        if reached < TOLERANCE * expected:
            say(
                f"warning: {RUNS[name]} reached AP {reached:.1f}, under {TOLERANCE:.0%} of the "
                f"{expected:.1f} in {REFERENCE}: look at {folder}/log.txt, or train anew after "
                f"rm -r {folder}"
            )


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
