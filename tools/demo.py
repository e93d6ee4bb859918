#!/usr/bin/env python
"""The main job in small: train a teacher, then a student without and with it, and compare.

Everything is real: Detectron2, RetinaNet R-50 and R-18, COCO box AP on an embedded COCO-format data set.
What is already there is reused.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from _checkout import ROOT
from commandline import Figures, argument_parser, circumstances, say
from processes import Process, Word, call

from mgd_det.run.metrics import read_metrics

DATA = Path("datasets/demo")
OUTPUT = Path("output/demo")
RUNS = {"teacher": "teacher R-50", "student": "student R-18", "student_mgd": "student R-18 + MGD"}
REFERENCE = Path("results/demo.json")  # what this command measured, committed
TOLERANCE = 0.8  # of the reference; below it something is wrong

# Of a run's output, the lines that tell how far it is; all of it is in its log.txt.
PROGRESS = (" eta: ", "matching ", "Inference done", "error")


def main() -> None:
    examples = "examples:\n  tools/demo.py\n  rm -r output/demo && tools/demo.py   (train anew)"
    parser = argument_parser(__doc__, examples)
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


def run(*command: Word) -> None:
    """Run a script of this repository in a process of its own."""
    if code := call(*command)[0]:
        sys.exit(code)


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
    # An earlier start may have been interrupted.
    command = ["tools/train_net.py", "--config-file", f"configs/demo/{name}.yaml", "--start-over"]
    with Process(OUTPUT / name / "console.txt", *command) as process:
        for line in process.lines():
            if any(mark in line for mark in PROGRESS):
                say(line)
    if process.process.returncode:
        say("\n".join(process.output().splitlines()[-30:]))
        sys.exit(f"error: training {RUNS[name]} failed with exit code {process.process.returncode}")
    last = next(m for m in reversed(read_metrics(OUTPUT / name / "metrics.json")) if "bbox/AP" in m)
    result = {"AP": last["bbox/AP"], "AP50": last["bbox/AP50"], "seconds": time.monotonic() - start}
    result_file.write_text(json.dumps(result))
    return result


def record(results: dict[str, dict[str, float]]) -> Figures:
    """The figures, and where they come from."""
    return {
        "command": "make demo",
        "seed": "SEED 1 in configs/demo/base.yaml, data of seed 0",
        "data": "datasets/demo, val split: 300 images",
        **circumstances(gpus=0),
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


if __name__ == "__main__":
    main()
