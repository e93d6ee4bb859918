#!/usr/bin/env python
"""Measure the seconds from the command to the first iteration, beside stock Detectron2's on the same student.

Every start is a process of its own that ends where the first iteration begins, before the matching. All kinds
of start take turns. Weights are random and lie in local files, and the data set has a few images.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import torch  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from make_demo_data import main as make_data  # noqa: E402
from tabulate import tabulate  # noqa: E402

from mgd_det.config import load_config, student_config  # noqa: E402
from mgd_det.modeling.teacher import TeacherSpec  # noqa: E402

UNTIL_FIRST_ITERATION = """
import os, runpy, sys
from detectron2.engine import TrainerBase
TrainerBase.before_step = lambda self: os._exit(0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
STOCK = """
import sys
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import DefaultTrainer, default_setup

config, name, annotations, images = sys.argv[1:]
register_coco_instances(name, {}, annotations, images)
cfg = get_cfg()
cfg.merge_from_file(config)
default_setup(cfg, None)
trainer = DefaultTrainer(cfg)
trainer.resume_or_load(resume=False)
trainer.train()
"""
TEACHER = """
import os, sys, time
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model

cfg = get_cfg()
cfg.merge_from_file(sys.argv[1])
start, cpu = time.perf_counter(), time.process_time()
DetectionCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)
print(time.perf_counter() - start, time.process_time() - cpu)
"""


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", default="configs/retinanet_r18_mgd.yaml", metavar="FILE")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="of each start (default: 5)")
    checkouts = "of this project, to be compared (default: this one)"
    parser.add_argument("--checkouts", nargs="+", type=Path, default=[ROOT], metavar="FOLDER", help=checkouts)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        stock, teacher, distilled = prepare(Path(folder), args.config_file)
        seconds: dict[str, list[tuple[float, float]]] = {}
        for _ in range(args.runs):
            seconds.setdefault("stock", []).append(start(ROOT, *stock))
            loading = [sys.executable, "-c", TEACHER, teacher]
            found = subprocess.run(loading, check=True, capture_output=True, text=True).stdout.split()[-2:]
            seconds.setdefault("teacher's load", []).append((float(found[0]), float(found[1])))
            for checkout in args.checkouts:
                timed = start(checkout, str(checkout / "tools/train_net.py"), *distilled)
                seconds.setdefault(str(checkout), []).append(timed)
    floor = [
        statistics.median(kind) for kind in zip(*map(sum_pairs, seconds["stock"], seconds["teacher's load"]))
    ]
    rows = []
    for name, pairs in seconds.items():
        wall, cpu = ([*kind] for kind in zip(*pairs))
        medians = statistics.median(wall), statistics.median(cpu)
        ratios = [f"{median / least:.2f}" for median, least in zip(medians, floor)]
        rows.append(
            [name, f"{medians[0]:.2f}", f"{min(wall):.2f} - {max(wall):.2f}", f"{medians[1]:.2f}", *ratios]
        )
    heads = ["start", "median s", "range", "CPU s", "of stock + teacher", "the same, CPU"]
    print(tabulate(rows, heads, disable_numparse=True))


def sum_pairs(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Returns the sums of wall-clock and of CPU seconds."""
    return a[0] + b[0], a[1] + b[1]


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
    stock = [f"{folder}/stock.py", f"{folder}/student.yaml", *register]
    return stock, f"{folder}/teacher.yaml", ["--config-file", f"{folder}/distilled.yaml", "--num-gpus", "0"]


def start(checkout: Path, *command: str) -> tuple[float, float]:
    """Returns the wall-clock and CPU seconds of a script until its first iteration."""
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", UNTIL_FIRST_ITERATION, *command],
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the start failed: {' '.join(command)}")
    return time.perf_counter() - begin, usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main(sys.argv[1:])
