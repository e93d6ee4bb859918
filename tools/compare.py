#!/usr/bin/env python
"""Compare distillation recipes, the arms of an experiment, over several seeds.

With one seed all arms start from the same weights and see the same images in the same order. Finished runs
are kept and interrupted ones go on where they were: the same command, given again, continues an experiment.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from _checkout import ROOT
from commandline import argument_parser, bad_input_in_one_line, say
from comparing.evaluations import EvaluationProcess, plan_evaluations, verdict
from comparing.experiment import Experiment, Run, plan, read_experiment, relative
from comparing.gate import Verdict
from comparing.records import Record, check_files, check_unfinished, read_records
from comparing.report import write_report
from comparing.runner import INTERRUPTED, Runner, RunProcess

from mgd_det.errors import ConfigError
from mgd_det.run.main import argument_parser as training_parser
from mgd_det.run.preflight import check_launch, preflight

EXAMPLES = """
An experiment is a YAML file; its paths start at the repository:

  config: configs/demo/student_mgd.yaml   # what all arms share
  results: results/screening              # runs.jsonl, a line for each run, and the report
  output: output/screening                # what the runs leave: checkpoints and logs
  iterations: 300                         # the length of all runs; SOLVER.STEPS are scaled along
  seeds: [11, 12, 13]
  baseline: student alone                 # the arm that the others are compared with
  set: [DATASETS.TEST, '("demo_test",)']  # overrides for all arms; may be left out
  functions: []                           # that add keys, as --config-function names them; may be left out
  pairs:                                  # arms to compare with each other, too; may be left out
    - [mgd, "mgd, random assignment"]
  arms:
    student alone: [DISTILL.ENABLED, false]
    mgd: []
    mgd, random assignment:
      - DISTILL.EXPERIMENT.ASSIGNMENT
      - random
      - DISTILL.EXPERIMENT.ASSIGNMENT_SEED
      - "{seed}"
    mgd, twice as long: {set: [], iterations: 600}
    student alone, twice as long: {set: [DISTILL.ENABLED, false], iterations: 600}
    mgd, with figures of others beside its own:
      set: []
      published: [{AP: 31.38, source: "Yue et al., ECCV 2020", differs: "COCO; teacher of 37.01 AP"}]
  gate:                                   # of a study at convergence; may be left out
    data: demo_val                        # where it is read: teacher and baseline are evaluated there
    twice: student alone, twice as long   # the arm that is the baseline at twice the length
    max_gain: 0.5                         # AP: twice the length gains less, over two seeds or more
    min_lead: 5                           # AP: the teacher is at least so far above the baseline

"{seed}" is each run's own seed. Of the config only SOLVER.STEPS are scaled: warm-up and periods count in
iterations as it has them. With TEST.EVAL_PERIOD in 'set', the report shows AP over the iterations, too.

Experiments that share keys name a file that has them with _BASE_: FILE, as seen from their own folder. Their
own keys and arms are added to the base's, and replace those of the same name.

A gate says whether a study was made at convergence, and with a teacher that is better than its students
become. What it needs is measured once, when the arms have been trained: the teacher of the config and of
'set' is evaluated on the gate's data set, and so are the networks that the baseline's runs of both lengths
have left in 'output', unless the arms are measured on that set anyway. The records are in gate.jsonl.

examples:
  tools/compare.py experiments/screening.yaml                         (run, or continue, and report)
  tools/compare.py experiments/screening.yaml --jobs 2                (two runs at a time)
  tools/compare.py experiments/screening.yaml --only mgd --seeds 11   (a part)
  tools/compare.py experiments/screening.yaml --report-only           (from what is there)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser(__doc__, EXAMPLES)
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml", help="file as described below")
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="J",
        help="number of runs at a time, each on GPUs of its own as long as there are enough (default: 1)",
    )
    parser.add_argument("--only", nargs="+", metavar="ARM", help="run these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="run these seeds alone")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing, and write the report of what is there"
    )
    gpus = min(torch.cuda.device_count(), 1)
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=gpus,
        metavar="N",
        help=f"number of GPUs of each run (default here: {gpus})",
    )
    args = parser.parse_args(argv)
    path = args.experiment.absolute()
    os.chdir(ROOT)
    with bad_input_in_one_line():
        sys.exit(compare(relative(path), args))


def compare(path: Path, args: argparse.Namespace) -> int:
    """Run what is missing and write the report; returns the exit code."""
    experiment = read_experiment(path)
    check_arguments(args, experiment)
    runs = plan(experiment, args.num_gpus)
    code = 0
    if not args.report_only:
        arms, seeds = args.only or [arm.name for arm in experiment.arms], args.seeds or experiment.seeds
        chosen = [run for run in runs if run.arm.name in arms and run.seed in seeds]
        code = run_missing(runs, chosen, args)
        if code == INTERRUPTED:
            return code
    records = read_records(runs)  # other starts', too
    if not records:
        if code:
            return code
        problem = "no run of this experiment is finished"
        raise ConfigError("results", str(experiment.results), problem, "Run some, without --report-only.")
    finished = [run for run in runs if run.name in records]
    passed = None
    if experiment.gate:
        evaluations = plan_evaluations(experiment, experiment.gate, finished, args.num_gpus)
        if not args.report_only:
            code = run_missing(evaluations, evaluations, args, EvaluationProcess) or code
            if code == INTERRUPTED:
                return code
        evaluated = read_records(evaluations).values()
        passed = verdict(experiment, experiment.gate, list(records.values()), list(evaluated))
    report(experiment, path, [records[run.name] for run in finished], passed)
    return code


def run_missing(
    runs: Sequence[Run],
    chosen: Sequence[Run],
    args: argparse.Namespace,
    process: type[RunProcess] = RunProcess,
) -> int:
    """Run those of the chosen runs that have no record; returns the exit code.

    Raises:
        ConfigError: one of the runs was made, or begun, with something else.
    """
    records = read_records(runs)
    for run in runs:
        if run.name in records:
            check_files(run, records[run.name])
        elif run in chosen:
            check_unfinished(run)
    missing = [run for run in chosen if run.name not in records]
    if missing:  # what is wrong with all of them is said once
        preflight(training_parser("").parse_args(missing[0].command[1:]))
    return Runner(chosen, records, args.jobs, args.num_gpus, process).run()


def check_arguments(args: argparse.Namespace, experiment: Experiment) -> None:
    """Raises ConfigError if the arguments do not fit the experiment or the machine."""
    check_launch(argparse.Namespace(num_gpus=args.num_gpus, num_machines=1))
    if args.jobs < 1:
        raise ConfigError("--jobs", args.jobs, "less than 1", "Give how many runs to have at a time.")
    names = [arm.name for arm in experiment.arms]
    for key, chosen, known in (("--only", args.only, names), ("--seeds", args.seeds, experiment.seeds)):
        for value in chosen or ():
            if value not in known:
                raise ConfigError(key, value, "not in the experiment", f"Choose among {known}.")


def report(experiment: Experiment, path: Path, records: Sequence[Record], passed: Verdict | None) -> None:
    """Write the report of these records, and print its table."""
    table = write_report(
        experiment.results,
        records,
        iterations={arm.name: arm.iterations for arm in experiment.arms},
        baseline=experiment.baseline,
        seeds=experiment.seeds,
        facts={
            "command": f"python tools/compare.py {shlex.quote(str(path))}",
            "config": str(experiment.config),
            "seeds": ", ".join(map(str, experiment.seeds)),
            "iterations": next(str(a.iterations) for a in experiment.arms if a.name == experiment.baseline),
            "data": f"{experiment.trained} to train, {experiment.tested} to measure",
        },
        pairs=experiment.pairs,
        verdict=passed,
        published={arm.name: arm.published for arm in experiment.arms if arm.published},
    )
    say(f"\n{table}\n\nreport: {experiment.results}/report.md, .json, .png")


if __name__ == "__main__":
    main()
