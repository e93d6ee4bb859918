#!/usr/bin/env python
"""Checks to run before weeks of training are trusted to this code: kills, resumes, ranks, precisions.

Each starts the real commands, in processes of their own, on tiny networks and images in a temporary folder,
and prints one line with its verdict and its figures. The exit code is 1 if any of them fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from _checkout import ROOT
from checking.checks import (
    dead_rank,
    kill_and_resume,
    mixed_precision,
    ranks,
    ranks_by_nccl,
    ranks_on_gpu,
    ranks_worker,
    resumed_precision,
    stock_resume,
    tools,
    two_agents,
)
from checking.interruptions import concurrent_runs, evaluation_kill, full_disk, ranks_resume, signals
from checking.jobs import prepare
from checking.report import document
from checking.verdicts import line, result_of
from commandline import (
    Figures,
    argument_parser,
    bad_input_in_one_line,
    circumstances_in_words,
    output_file,
    say,
    write_json,
)
from gpu.records import checked
from gpu.stages import device_tests

RECORD = ROOT / "results/selfcheck.json"
ON_DEVICE = "tests-gpu"  # which tools/gpu_check.py runs
# The checks that need a GPU.
ON_GPU = {
    "mixed-precision-gpu": partial(mixed_precision, gpus=1),
    "resumed-precision-gpu": partial(resumed_precision, gpus=1),
    "tools-gpu": partial(tools, gpus=1),
    "ranks-gpu": partial(ranks_on_gpu),
    "ranks-nccl": partial(ranks_by_nccl),
}


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argument_parser(
        __doc__,
        "examples:\n"
        "  tools/selfcheck.py\n"
        "  tools/selfcheck.py --only two-agents dead-rank\n"
        "  tools/selfcheck.py --only kill-pass --kills 100 --seed 7 --work /scratch/selfcheck\n"
        "  tools/selfcheck.py --report docs/reliability.md --json results/selfcheck.json",
    )
    every = list(all_checks(0, 0))
    here = [name for name in every if name not in ON_GPU or torch.cuda.is_available()]
    parser.add_argument(
        "--only",
        nargs="+",
        choices=every,
        default=here,
        metavar="CHECK",
        help=f"checks to run, out of {', '.join(every)} (default: all that this machine can run)",
    )
    parser.add_argument(
        "--kills",
        type=int,
        default=20,
        metavar="N",
        help="number of kills in each update mode of the matching (default: 20)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments of the kills (default: 0)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="a new folder to work in, and to keep")
    parser.add_argument("--json", type=Path, metavar="FILE", help="JSON file to write the figures to")
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="Markdown file to write a document about the figures to"
    )
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)  # a process of the checks of ranks
    args = parser.parse_args(argv)
    if args.kills < 1 or (args.work and args.work.exists()):
        parser.error("--kills must be 1 or more, and --work new")
    return args


def main(argv: Sequence[str]) -> int:
    args = parse_arguments(argv)
    if args.worker:
        ranks_worker(*args.worker)
        return 0
    with bad_input_in_one_line():
        figures_file = args.json and output_file("--json", args.json)
        report_file = args.report and output_file("--report", args.report)
    signal.signal(signal.SIGTERM, stop)
    results = {}
    with tempfile.TemporaryDirectory(prefix="selfcheck_") as temporary:
        work = (args.work or Path(temporary, "work")).resolve()
        work.mkdir(parents=True)
        config = prepare(work)
        for name, check in all_checks(args.kills, args.seed).items():
            if name in args.only:
                (work / name).mkdir()
                results[name] = result_of(check, config, work / name)
                say(line(name, results[name]))
    command = shlex.join(["tools/selfcheck.py", *argv])
    record = {
        "command": command,
        "seed": args.seed,
        **circumstances_in_words(platform.system()),
        "results": results,
    }
    if figures_file:
        write_json(figures_file, record)
    if report_file:
        report_file.write_text(report(record), encoding="utf-8")
    return 0 if all(result["passed"] for result in results.values()) else 1


def all_checks(kills: int, seed: int) -> dict[str, partial[Figures]]:
    """Returns the checks by name; each is called with the config and an empty folder."""
    return {
        "kill-pass": partial(kill_and_resume, mode="pass", kills=kills, seed=seed),
        "kill-online": partial(kill_and_resume, mode="online", kills=kills, seed=seed),
        "stock-resume": partial(stock_resume),
        "signals": partial(signals),
        "full-disk": partial(full_disk),
        "evaluation-kill": partial(evaluation_kill),
        "concurrent-runs": partial(concurrent_runs),
        "ranks-resume": partial(ranks_resume),
        "ranks": partial(ranks),
        "two-agents": partial(two_agents),
        "dead-rank": partial(dead_rank),
        "mixed-precision": partial(mixed_precision),
        "resumed-precision": partial(resumed_precision),
        "tools": partial(tools),
        **ON_GPU,
    }


def report(record: Figures) -> str:
    """Returns the text of docs/reliability.md, with what tools/gpu_check.py has found."""
    records = [record, *checked()]
    found = [name for one in records for name in one["results"]]
    meanings = {name: str(check.func.__doc__) for name, check in all_checks(0, 0).items() if name in found}
    if ON_DEVICE in found:
        meanings[ON_DEVICE] = str(device_tests.__doc__)
    return document(records, meanings)


def committed_report() -> str:
    """Returns docs/reliability.md of the figures that are committed."""
    return report(json.loads(RECORD.read_text()))


def stop(*signal_and_frame: object) -> None:
    """Leave the `with` blocks, undisturbed by another signal."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
