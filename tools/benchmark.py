#!/usr/bin/env python
"""Measure what distilling costs: steps, losses, matching, memory, data; as ratios taken in one run.

The floor of a distilled step is the student's own step and the part of the teacher's forward pass that the
taps need. Networks have random weights and images are noise, so nothing is downloaded; the solver, whose time
depends on its numbers, gets costs of features of scikit-learn's photographs. All that is compared is run in
turn, so that whatever else slows the machine down slows all of it down.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import torch
from _checkout import ROOT
from benchmarking.overlap import teacher_overlap
from benchmarking.parts import feature_costs, loader_share, pooled_loss, re_solve, teacher_ways, use_photos
from benchmarking.report import document, lines
from benchmarking.steps import (
    PROCESSES,
    Bench,
    cheaper_teachers,
    method_losses,
    method_steps,
    peak_memory,
    tap_growth,
)
from commandline import (
    Figures,
    argument_parser,
    bad_input_in_one_line,
    circumstances_in_words,
    output_file,
    say,
    write_json,
)
from detectron2.config import CfgNode
from gpu.records import measured

from mgd_det.config import DTYPES, load_config
from mgd_det.config.functions import add_config_flag
from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.errors import ConfigError
from mgd_det.methods import method_defaults

PARTS = ("loss", "solve", "steps", "memory")
# Only where they are asked for: for "data" the training set must be there, the others take long.
DATA, TAPS, TEACHER, LOSSES = "data", "taps", "teacher", "losses"
COMPILED, CHEAPER, OVERLAP = "compiled", "cheaper", "overlap"
MORE = (COMPILED, LOSSES, TAPS, TEACHER, CHEAPER, OVERLAP, DATA)
Batch = tuple[int, tuple[int, int], Optional[torch.dtype]]  # images, their size, dtype of autocast
RECORDS = ROOT / "results/performance.json"
BATCHES = 30  # of the data loader, which takes seconds
EXAMPLES = """
examples:
  tools/benchmark.py                                  (RetinaNet R-50 to R-18 at COCO's size; slow on a CPU)
  tools/benchmark.py --only loss solve
  tools/benchmark.py --config-file configs/demo/student_mgd.yaml --images 8 --size 96 128
  tools/benchmark.py --dtype bfloat16 --images 16 --json results/performance.json --record gpu
  tools/benchmark.py --report docs/performance.md     (from the files in results/; measures nothing)
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argument_parser(__doc__, EXAMPLES)
    more = f"{', '.join(MORE)}, of which the last needs the training set"
    parts = f"parts to measure: {', '.join(PARTS)} (default: these), {more}"
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*PARTS, *MORE),
        default=PARTS,
        metavar="PART",
        help=parts,
    )
    parser.add_argument(
        "--config-file",
        default="configs/retinanet_r18_mgd.yaml",
        metavar="FILE",
        help="config of the run that is measured; its path starts at the repository (default: %(default)s)",
    )
    add_config_flag(parser)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["mgd"],
        metavar="METHOD",
        help="methods, each measured by itself (default: mgd)",
    )
    parser.add_argument(
        "--images", type=int, default=2, metavar="N", help="number of images in a batch (default: 2)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        default=(800, 1216),
        metavar=("H", "W"),
        help="height and width of the images in pixels (default: 800 1216)",
    )
    parser.add_argument(
        "--dtype", choices=sorted(DTYPES), help="dtype of autocast (default: float32, without autocast)"
    )
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=here, help="device to measure on (default here: %(default)s)")
    parser.add_argument(
        "--runs",
        type=int,
        default=20,
        metavar="R",
        help="number of repetitions of every measurement (default: 20)",
    )
    parser.add_argument(
        "--photos", action="store_true", help="read scikit-learn's photographs instead of the training set"
    )
    parser.add_argument(
        "--trained",
        action="store_true",
        help="measure the part solve with the weights that the config names instead of random ones",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="file of records that the figures are added to"
    )
    parser.add_argument(
        "--record", default="figures", metavar="NAME", help="name of the record (default: figures)"
    )
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="write docs/performance.md to this file, and measure nothing",
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config, behind --")
    args = parser.parse_args(argv)
    if min(args.images, args.runs, *args.size) < 1:
        parser.error("--images, --size and --runs must be at least 1")
    return args


def main(argv: Sequence[str]) -> None:
    args = parse_arguments(argv)
    with bad_input_in_one_line():
        report_file = args.report and output_file("--report", args.report)
        records_file = args.json and records_to_extend(args.json)
        os.chdir(ROOT)
        if report_file:
            report_file.write_text(report(), encoding="utf-8")
            return
        found = measure(args)
    record = {
        "command": shlex.join(["tools/benchmark.py", *argv]),
        **circumstances_in_words(platform.system(), f"{torch.get_num_threads()} threads of torch"),
        "device": args.device,
        **found,
    }
    say("\n".join(lines(record)))
    if records_file:
        write_record(records_file, args.record, record)


def report() -> str:
    """Returns docs/performance.md, of the records of this tool and of tools/gpu_check.py."""
    records = read_records(RECORDS)
    return document([*(records[name] for name in sorted(records)), *measured()])


def read_records(path: Path) -> dict[str, Figures]:
    """Returns the records of earlier measurements by name; none if there is no such file."""
    return json.loads(path.read_text()) if path.exists() else {}


def records_to_extend(path: Path) -> Path:
    """Returns the absolute path of --json, in a folder that is made for it.

    Raises:
        ConfigError: it cannot be written, or holds something else than records.
    """
    file = output_file("--json", path)
    try:
        found: list[object] = list(read_records(file).values())
    except (OSError, ValueError, AttributeError):  # it cannot be read, is not JSON, or is not a table
        found = [None]
    if not all(isinstance(record, dict) for record in found):
        problem = "holds something else than records of measurements"
        raise ConfigError("--json", str(path), problem, "Name another file, or a new one.")
    return file


def write_record(path: Path, name: str, record: Mapping[str, object]) -> None:
    """Add a record to a file, in place of an earlier one of the same name."""
    write_json(path, {**read_records(path), name: record})


def device_here(name: str) -> torch.device:
    """Returns the device of that name.

    Raises:
        ConfigError: torch cannot use it on this machine.
    """
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # the second from a torch without CUDA
        reason = str(error).splitlines()[0]
        remedy = "Give cpu, or cuda on a machine with a GPU."
        raise ConfigError("--device", name, f"cannot be used here ({reason})", remedy) from error


def measure(args: argparse.Namespace) -> Figures:
    """Returns the figures of the parts that were asked for."""
    device = device_here(args.device)
    found: Figures = {}
    cfg = load_config(args.config_file, args.opts, device=args.device, functions=args.config_function)
    for name in args.methods:
        if name not in method_defaults():
            remedy = f"Choose among {', '.join(method_defaults())}."
            raise ConfigError("--methods", name, "there is no such method", remedy)
    register_datasets(cfg)
    if DATA in args.only and not args.photos:
        cfg.DATASETS.TEST = ()
        check_datasets(cfg, training=True)
    dtype = DTYPES[args.dtype] if args.dtype else None
    if {"loss", COMPILED} & set(args.only):
        found["loss"] = pooled_loss(device, args.runs, dtype, COMPILED in args.only)
    if "solve" in args.only:
        with tempfile.TemporaryDirectory() as folder:
            costs = feature_costs(cfg, Path(folder), args.trained)
        found["solve"] = re_solve(costs, args.runs)
    wanted = set(args.only) - {"loss", COMPILED, "solve"}
    return {**found, **measure_networks(args, cfg, wanted, dtype)} if wanted else found


def measure_networks(
    args: argparse.Namespace, cfg: CfgNode, wanted: set[str], dtype: torch.dtype | None
) -> Figures:
    """Returns the figures of the parts that run the config's networks, and their setting."""
    found: Figures = {}
    found["setting"] = {
        "config": args.config_file,
        "images": args.images,
        "size": list(args.size),
        "dtype": args.dtype or "float32",
        "overrides": args.opts,
    }
    if TEACHER in wanted:
        found[TEACHER] = teacher_ways(cfg, args.images, tuple(args.size), dtype, args.runs)
    for method in args.methods:
        batch = (args.images, tuple(args.size), dtype)
        for part, figures in measure_method(cfg, method, wanted, batch, args.runs).items():
            found.setdefault(part, {})[method] = figures
    if DATA in wanted:
        step = found["steps"][args.methods[0]]["seconds"]["distilled"]["median"]
        with tempfile.TemporaryDirectory() as folder:
            if args.photos:
                use_photos(cfg, Path(folder))
            found[DATA] = {"photos": args.photos, **loader_share(cfg, args.images, BATCHES, step)}
    return found


def measure_method(cfg: CfgNode, method: str, wanted: set[str], batch: Batch, runs: int) -> dict[str, object]:
    """Returns the figures of one method, by the part that was asked for."""
    found: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if wanted & {"steps", DATA}:
            found["steps"] = method_steps(Bench(cfg, method, folder, *batch), runs)
        if LOSSES in wanted:
            found[LOSSES] = method_losses(Bench(cfg, method, folder, *batch), runs)
        if TAPS in wanted and "TAPS" in cfg.DISTILL[method.upper()]:
            found[TAPS] = tap_growth(cfg, method, (folder, *batch), runs)
        if CHEAPER in wanted:
            found[CHEAPER] = cheaper_teachers(cfg, method, (folder, *batch), runs)
        if OVERLAP in wanted:
            found[OVERLAP] = teacher_overlap(Bench(cfg, method, folder, *batch), runs)
        if "memory" in wanted:
            found["memory"] = peak_memory(min(runs, PROCESSES), cfg, method, folder, *batch)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
