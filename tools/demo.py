#!/usr/bin/env python
"""The main job in small: a student without and with its teacher, compared.

Everything is real: Detectron2, RetinaNet R-50 and R-18, COCO box AP on an embedded COCO-format data set. The
teacher comes with the repository, because a good one takes an hour. What is already there is reused.
"""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from _checkout import ROOT
from commandline import (
    Figures,
    argument_parser,
    bad_input_in_one_line,
    circumstances,
    output_file,
    say,
    write_json,
)
from processes import Process, Word, call

DATA = Path("datasets/demo")
OUTPUT = Path("output/demo")
TEACHER = Path("configs/studies/shapes/teacher.pth")  # docs/studies.md says how it was trained
RUNS = {"teacher": "teacher R-50", "student": "student R-18", "student_mgd": "student R-18 + MGD"}
RESULT = "demo_result.json"  # in the folder of each run
REFERENCE = Path("results/demo.json")  # what this command measured, committed
TOLERANCE = 0.8  # of the reference; below it something is wrong

# Of a run's output, the lines that tell how far it is; all of it is in its log.txt.
PROGRESS = (" eta: ", "matching ", "Inference done", "error")
FIGURES = re.compile(r"copypaste: ([\d.]+),([\d.]+),")  # AP and AP50, as Detectron2 logs them

EXAMPLES = """
examples:
  tools/demo.py
  rm -r output/demo && tools/demo.py                    (all of it anew)
  rm -r output/demo && tools/demo.py --train-teacher    (with a teacher that is trained here)
"""

Result = Mapping[str, float]  # of a run: AP and AP50, and its seconds unless it was trained before


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument("--record", type=Path, metavar="FILE", help="JSON file to write the figures to")
    parser.add_argument(
        "--train-teacher",
        action="store_true",
        help="train a teacher for some minutes instead of taking the repository's",
    )
    args = parser.parse_args(argv)
    with bad_input_in_one_line():
        record_file = args.record and output_file("--record", args.record)
    os.chdir(ROOT)
    if problem := other_teacher(OUTPUT / "teacher", trained=args.train_teacher):
        sys.exit(f"error: {problem}")
    run("tools/make_demo_data.py", "--out", DATA)
    make = dict.fromkeys(RUNS, train)
    if not args.train_teacher:
        make["teacher"] = take
    results = {name: reused(name) or keep(name, make[name](name)) for name in RUNS}
    run(
        *("tools/draw_detections.py", "--annotations", DATA / "annotations/val.json"),
        *("--images", DATA / "val", "--out", OUTPUT / "detections.png", "--results"),
        *(f"{title}={detections(name)}" for name, title in RUNS.items()),
    )
    say(table(results))
    say(f"detections side by side: {OUTPUT / 'detections.png'}")
    say(f"the student, for stock Detectron2: {OUTPUT / 'student_mgd'}/model_final.pth, student_config.yaml")
    if record_file:
        command = "tools/demo.py --train-teacher" if args.train_teacher else "make demo"
        write_json(record_file, record(command, results))
    if not args.train_teacher:  # the reference is of ours
        warn_if_low(results, json.loads(REFERENCE.read_text())["results"])


def run(*command: Word) -> None:
    """Run a script of this repository in a process of its own."""
    if code := call(*command)[0]:
        sys.exit(code)


def detections(name: str) -> Path:
    return OUTPUT / name / "inference/coco_instances_results.json"


def reused(name: str) -> Result | None:
    """Returns what an earlier call has measured with the teacher that is there now, if there is anything."""
    path = OUTPUT / name / RESULT
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    if found.pop("teacher", "unknown") != teacher_of(name):
        return None
    say(f"{RUNS[name]}: reusing {OUTPUT / name}")
    return found


def keep(name: str, result: Result) -> Result:
    write_json(OUTPUT / name / RESULT, {**result, "teacher": teacher_of(name)})
    return result


def teacher_of(name: str) -> str | None:
    """Returns the SHA-256 of the teacher's weights that a network is or learns from; None without any."""
    weights = OUTPUT / "teacher/model_final.pth"
    if name == "student" or not weights.exists():
        return None
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def train(name: str) -> Result:
    """Train a network."""
    say(f"{RUNS[name]}: training, log in {OUTPUT / name}/log.txt")
    start = time.monotonic()
    result = measure(name, "--start-over")  # an earlier start may have been interrupted
    return {**result, "seconds": time.monotonic() - start}


def other_teacher(folder: Path, *, trained: bool) -> str:
    """Returns what is wrong if a folder holds another teacher than the one that is asked for, else ""."""
    found = sorted(folder.glob("*.pth"))
    ours = [weights for weights in found if filecmp.cmp(weights, TEACHER, shallow=False)]
    if trained and ours:
        return f"{ours[0]} is the repository's teacher; to train one, make room by rm -r {folder.parent}"
    if not trained and found != ours:
        other = next(weights for weights in found if weights not in ours)
        return (
            f"{other} is not the repository's teacher; go on with --train-teacher, or make room by "
            f"rm -r {folder.parent}"
        )
    return ""


def take(name: str) -> Result:
    """Put the repository's teacher where the students look for theirs."""
    weights = OUTPUT / name / "model_final.pth"
    say(f"{RUNS[name]}: {TEACHER}, log in {OUTPUT / name}/log.txt")
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TEACHER, weights)
    return measure(name, "--eval-only", "MODEL.WEIGHTS", weights)


def measure(name: str, *options: Word) -> Result:
    """Run tools/train_net.py; returns the AP and AP50 that it ends with."""
    command = ["tools/train_net.py", "--config-file", f"configs/demo/{name}.yaml", *options]
    with Process(OUTPUT / name / "console.txt", *command) as process:
        for line in process.lines():
            if any(mark in line for mark in PROGRESS):
                say(line)
    if process.process.returncode:
        say("\n".join(process.output().splitlines()[-30:]))
        sys.exit(f"error: {RUNS[name]} failed with exit code {process.process.returncode}")
    ap, ap50 = map(float, FIGURES.findall(process.output())[-1])
    return {"AP": ap, "AP50": ap50}


def record(command: str, results: Mapping[str, Result]) -> Figures:
    """The figures, and where they come from."""
    return {
        "command": command,
        "seed": "SEED 1 in configs/demo/base.yaml, data of seed 0",
        "data": "datasets/demo, val split: 300 images",
        **circumstances(gpus=0),
        "results": results,
    }


def table(results: Mapping[str, Result]) -> str:
    lines = ["", f"{'':22}{'AP':>8}{'AP50':>8}{'time':>16}"]
    for name, r in results.items():
        trained = "trained before"
        if "seconds" in r:
            minutes, seconds = divmod(round(r["seconds"]), 60)
            trained = f"{minutes}:{seconds:02d}"
        lines.append(f"{RUNS[name]:22}{r['AP']:8.1f}{r['AP50']:8.1f}{trained:>16}")
    return "\n".join([*lines, ""])


def warn_if_low(results: Mapping[str, Result], reference: Mapping[str, Result]) -> None:
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
