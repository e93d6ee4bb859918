#!/usr/bin/env python
"""Measure the seconds from the command to the first iteration, beside stock Detectron2's on the same student.

Every start is a process of its own that ends where the first iteration begins, before the matching. All kinds
of start take turns. Weights are random and lie in local files, and the data set has a few images.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from _checkout import ROOT
from benchmark import records_to_extend, write_record
from benchmarking.report import lines
from commandline import Figures, bad_input_in_one_line, circumstances_in_words, say
from detectron2.modeling import build_model
from make_demo_data import main as make_data
from processes import Failed

from mgd_det.config import load_config, student_config
from mgd_det.modeling.teacher import TeacherSpec

FLOOR = "stock and the teacher's load"
UNTIL_FIRST_ITERATION = """
import os, runpy, sys
from detectron2.engine import TrainerBase
TrainerBase.before_step = lambda self: os._exit(0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
STOCK = """
import sys
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_setup
from detectron2.modeling import build_model

name, annotations, images, *configs = sys.argv[1:]
register_coco_instances(name, {}, annotations, images)
cfg, teacher = get_cfg(), get_cfg()
cfg.merge_from_file(configs[0])
default_setup(cfg, None)
trainer = DefaultTrainer(cfg)
trainer.resume_or_load(resume=False)
if configs[1:]:
    teacher.merge_from_file(configs[1])
    DetectionCheckpointer(build_model(teacher)).load(teacher.MODEL.WEIGHTS)
trainer.train()
"""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--config-file",
        default="configs/retinanet_r18_mgd.yaml",
        metavar="FILE",
        help="config of the run that is started; its path starts at the repository (default: %(default)s)",
    )
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="number of starts of each kind (default: 5)"
    )
    checkouts = "checkouts of this project that are compared (default: this one)"
    parser.add_argument("--checkouts", nargs="+", type=Path, default=[ROOT], metavar="FOLDER", help=checkouts)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file of records that the figures are added to"
    )
    parser.add_argument(
        "--record", default="cpu_start", metavar="NAME", help="name of the record (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.runs < 1:
        parser.error("--runs must be at least 1")
    with bad_input_in_one_line():
        records_file = args.json and records_to_extend(args.json)
        try:
            rows = measure(args.config_file, args.checkouts, args.runs)
        except Failed as error:
            sys.exit(f"error: {error}")
    record = {
        "command": shlex.join(["tools/benchmark_start.py", *argv]),
        **circumstances_in_words(platform.system(), f"{torch.get_num_threads()} threads of torch", gpus=0),
        "device": "cpu",
        "start": {"config": args.config_file, "rows": rows},
    }
    say("\n".join(lines(record)))
    if records_file:
        write_record(records_file, args.record, record)


def measure(config_file: str, checkouts: Sequence[Path], runs: int) -> list[Figures]:
    """Returns the seconds of each kind of start, and their ratio to stock's start with the teacher's load.

    Raises:
        ConfigError: the config cannot be used.
        Failed: a start failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        stock, teacher, distilled = prepare(Path(folder), config_file)
        starts = {"stock": (ROOT, stock), FLOOR: (ROOT, [*stock, teacher])}
        for number, checkout in enumerate(checkouts):
            name = "this project" if checkout == ROOT else str(checkout)
            output = ["OUTPUT_DIR", f"{folder}/run_{number}"]
            starts[name] = (checkout, [str(checkout / "tools/train_net.py"), *distilled, *output])
        turns = [{name: start(*how) for name, how in starts.items()} for _ in range(runs)]
    rows: list[Figures] = []
    for name in starts:
        row: Figures = {"start": name}
        for kind, what in enumerate(("seconds", "CPU seconds")):
            seconds, floor = ([turn[of][kind] for turn in turns] for of in (name, FLOOR))
            median = statistics.median(seconds)
            row[what] = {"median": median, "range": [min(seconds), max(seconds)]}
            row[what]["ratio"] = median / statistics.median(floor)
        rows.append(row)
    return rows


def prepare(folder: Path, config_file: str) -> tuple[list[str], str, list[str]]:
    """Write data, weights and configs; returns the arguments of the stock, teacher's and distilled start."""
    make_data(
        ["--out", str(folder / "data"), "--size", "96", "96", "--train", "6", "--val", "6", "--test", "6"]
    )
    register = ["start_train", f"{folder}/data/annotations/train.json", f"{folder}/data/train"]
    cfg = load_config(str(ROOT / config_file), device="cpu")
    cfg.DATASETS.REGISTER, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [register], ("start_train",), ()
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS, cfg.OUTPUT_DIR = 2, 0, str(folder / "run")
    student, teacher = student_config(cfg), TeacherSpec.from_config(cfg).config()
    teacher.MODEL.DEVICE = "cpu"
    student.MODEL.WEIGHTS, teacher.MODEL.WEIGHTS = f"{folder}/student.pth", f"{folder}/teacher.pth"
    for network in (student, teacher):
        torch.save({"model": build_model(network).state_dict()}, network.MODEL.WEIGHTS)
    cfg.MODEL.WEIGHTS, cfg.DISTILL.TEACHER.WEIGHTS = student.MODEL.WEIGHTS, teacher.MODEL.WEIGHTS
    (folder / "stock.py").write_text(STOCK)
    for name, written in (("student", student), ("teacher", teacher), ("distilled", cfg)):
        (folder / f"{name}.yaml").write_text(written.dump())
    stock = [f"{folder}/stock.py", *register, f"{folder}/student.yaml"]
    return stock, f"{folder}/teacher.yaml", ["--config-file", f"{folder}/distilled.yaml", "--num-gpus", "0"]


def start(checkout: Path, command: Sequence[str]) -> tuple[float, float]:
    """Returns the wall-clock and CPU seconds of a script until its first iteration.

    Raises:
        Failed: it ended before; the text has what it wrote to stderr.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", UNTIL_FIRST_ITERATION, *command],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), str(checkout / "tools")])},
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        if status:
            errors.seek(0)
            said = errors.read().decode(errors="replace").strip()
            raise Failed(f"this start failed: {shlex.join(command)}\n{said}")
    return seconds, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
