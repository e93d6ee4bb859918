#!/usr/bin/env python
"""Check and measure on a GPU what a machine without one cannot: everything in stages of minutes.

Each stage runs commands of this repository, one after the other, and writes their figures to OUT/STAGE.json
after each of them. What has passed on the same machine, with the same code and versions, is not run again, so
that a stage that was cut off goes on where it was. At the end docs/performance.md and docs/reliability.md are
made from the files in results/gpu and those of tools/benchmark.py and tools/selfcheck.py. Nothing is
downloaded. The exit code is 1 if anything fails, and 3 without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import benchmark
import selfcheck
import torch
from _checkout import ROOT
from checking.verdicts import line, result_of
from commandline import (
    Figures,
    Record,
    argument_parser,
    bad_input_in_one_line,
    output_folder,
    say,
    write_json,
)
from gpu.records import MEASURED, RESULTS, new_record, read_or_new
from gpu.stages import Part, all_stages
from gpu.wheels import wheels
from processes import Failed

STAGES = ("correctness", "speed", "steps", "teacher", "tools", "ranks")
SECONDS = 480  # of a stage
NO_GPU = 3  # exit code
EXAMPLES = """
examples:
  tools/gpu_check.py                                  (every stage, at most 8 minutes each)
  tools/gpu_check.py --stage correctness speed
  tools/gpu_check.py --tiny --out /tmp/gpu            (small networks: tries the tool in some minutes)
  tools/gpu_check.py --tiny --device cpu --out /tmp/gpu
  tools/gpu_check.py --list-wheels > wheels.txt       (for a machine without a network)
  tools/gpu_check.py --report                         (only makes the documents from the files)
"""


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument(
        "--stage",
        nargs="+",
        choices=STAGES,
        default=STAGES,
        metavar="STAGE",
        help=f"stages to run, out of {', '.join(STAGES)} (default: all)",
    )
    parser.add_argument("--again", action="store_true", help="also run again what has passed")
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="folder of the figures (default: results/gpu)",
    )
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="device to run on (default: cuda)"
    )
    parser.add_argument("--tiny", action="store_true", help="small networks, of which no document is made")
    parser.add_argument(
        "--list-wheels",
        action="store_true",
        help="print what an image with torch and torchvision still needs",
    )
    parser.add_argument("--report", action="store_true", help="make the documents, and run nothing")
    args = parser.parse_args(argv)
    args.out = args.out.resolve()
    if (args.tiny or args.device == "cpu") and args.out == RESULTS:
        parser.error("--tiny and --device cpu need an --out of their own")
    return args


def main(argv: Sequence[str]) -> int:
    args = parse_arguments(argv)
    os.chdir(ROOT)
    if args.list_wheels:
        say("\n".join(wheels()))
        return 0
    if args.report:
        write_documents()
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            "error: torch sees no GPU here; --tiny --device cpu --out DIR tries this tool without\n"
        )
        return NO_GPU
    with bad_input_in_one_line():
        output_folder("--out", args.out)
    stages = all_stages(args.device, args.tiny)
    new = new_record(args.device, args.tiny)
    passed = [run_stage(name, stages[name], args.out, new, args.again) for name in args.stage]
    if args.out == RESULTS:
        write_documents()
    return 0 if all(passed) else 1


def run_stage(name: str, parts: Mapping[str, Part], out: Path, new: Record, again: bool = False) -> bool:
    """Run the parts of a stage that have not passed yet; returns whether all have.

    Args:
        out: folder of the record, NAME.json, and of the logs.
        new: the record of a stage of which nothing has been run.
        again: whether earlier results are left aside.
    """
    file, deadline = out / f"{name}.json", time.monotonic() + SECONDS
    empty: Figures = {**new, "results": {}}
    record = empty if again else read_or_new(file, empty)
    for part, job in parts.items():
        if record["results"].get(part, {"passed": False})["passed"]:
            say(f"kept {part}, of {record['date']}")
            continue
        result = result_of(timed, job, out / "logs" / part, deadline)
        record["results"][part] = result
        write_json(file, record)
        if result["passed"] and name in MEASURED:
            say("\n".join([f"PASS {part} ({result['seconds']} s)\n", *benchmark.lines(result["figures"])]))
        else:
            say(line(part, result))
    return all(record["results"][part]["passed"] for part in parts)


def timed(job: Part, folder: Path, deadline: float) -> Figures:
    """Run a part, for as long as its stage still may."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():  # of an earlier start
        file.unlink()
    left = deadline - time.monotonic()
    if left < 1:
        raise Failed(f"the {SECONDS} s of the stage were over before")
    return job(folder, left)


def write_documents() -> None:
    """Make the documents from all files of figures."""
    (ROOT / "docs/performance.md").write_text(benchmark.report(), encoding="utf-8")
    (ROOT / "docs/reliability.md").write_text(selfcheck.committed_report(), encoding="utf-8")
    say("written: docs/performance.md, docs/reliability.md")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
