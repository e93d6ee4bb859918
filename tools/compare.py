#!/usr/bin/env python
"""Compare distillation recipes, the arms of an experiment, over several seeds.

With one seed all arms start from the same weights and see the same images in the same order. Finished runs
are kept and interrupted ones go on where they were: the same command, given again, continues an experiment.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import os
import platform
import re
import shlex
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
# fvcore's, at every import; nothing that a user could act on.
warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)

import torch  # noqa: E402
import yaml  # noqa: E402
from compare_report import write_report  # noqa: E402  (found through the path above)
from detectron2 import __version__ as detectron2_version  # noqa: E402
from detectron2.config import CfgNode, get_cfg  # noqa: E402

from mgd_det.config import add_mgd_config, load_config  # noqa: E402
from mgd_det.errors import ConfigError  # noqa: E402
from mgd_det.launch import check_launch  # noqa: E402

EXAMPLES = """
An experiment is a YAML file; its paths start at the repository:

  config: configs/demo/student_mgd.yaml   # what all arms share
  results: results/screening              # one JSON for each run, and the report
  output: output/screening                # what the runs leave: checkpoints and logs
  iterations: 300                         # the length of all runs; SOLVER.STEPS are scaled along
  seeds: [11, 12, 13]
  baseline: student alone                 # the arm that the others are compared with
  set: [DATASETS.TEST, '("demo_test",)']  # overrides for all arms; may be left out
  arms:
    student alone: [DISTILL.ENABLED, false]
    mgd: []
    mgd, random assignment: [DISTILL.MGD.ASSIGNMENT, random]
    mgd, twice as long: {set: [], iterations: 600}

Of the config only SOLVER.STEPS are scaled: warm-up and periods count in iterations as it has them.

examples:
  tools/compare.py experiments/screening.yaml                         (run, or continue, and report)
  tools/compare.py experiments/screening.yaml --jobs 2                (two runs at a time)
  tools/compare.py experiments/screening.yaml --only mgd --seeds 11   (a part)
  tools/compare.py experiments/screening.yaml --report-only           (from what is there)
"""
TOP_KEYS: dict[str, type] = {
    **{"config": str, "results": str, "output": str, "iterations": int, "seeds": list, "baseline": str},
    **{"set": list, "arms": dict},
}
ARM_KEYS: dict[str, type] = {"set": list, "iterations": int}
KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}
# Set for every run by this tool.
OWN_KEYS = ("SEED", "OUTPUT_DIR", "SOLVER.MAX_ITER", "DISTILL.EXACT_RESUME")

INTERRUPTED = 128 + signal.SIGINT  # exit code, as a shell has it
POLL_SECONDS = 0.2
PROGRESS_SECONDS = 30
TAIL = 15  # lines of a failed run's output that are shown


class Arm(NamedTuple):
    """One recipe."""

    name: str
    overrides: list[str]  # the experiment's and its own
    iterations: int


class Experiment(NamedTuple):
    """An experiment file, checked."""

    config: Path
    results: Path
    output: Path
    seeds: list[int]
    baseline: str
    arms: list[Arm]
    data: str  # what is trained on, and what AP is measured on


class Run(NamedTuple):
    """One arm with one seed."""

    arm: Arm
    seed: int
    command: list[str]  # without the interpreter
    settings: dict[str, Any]  # that its result depends on
    name: str  # of its files
    output: Path
    result: Path

    def __str__(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


class Failed(Exception):
    """A run that gave no result; the text says why."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path, metavar="EXPERIMENT.yaml")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="runs at a time (default: 1)")
    parser.add_argument("--only", nargs="+", metavar="ARM", help="run these arms alone")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="run these seeds alone")
    parser.add_argument("--report-only", action="store_true", help="run nothing")
    gpus = min(torch.cuda.device_count(), 1)
    parser.add_argument(
        "--num-gpus", type=int, default=gpus, metavar="N", help=f"of each run (default here: {gpus})"
    )
    args = parser.parse_args(argv)
    path = args.experiment.absolute()
    os.chdir(ROOT)
    try:
        code = compare(relative(path), args)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        code = 2
    sys.exit(code)


def compare(path: Path, args: argparse.Namespace) -> int:
    """Run what is missing and write the report; the exit code."""
    experiment = read_experiment(path)
    check_launch(argparse.Namespace(num_gpus=args.num_gpus, num_machines=1))
    if args.jobs < 1:
        raise ConfigError("--jobs", args.jobs, "less than 1", "Give how many runs to have at a time.")
    names = [arm.name for arm in experiment.arms]
    arms, seeds = args.only or names, args.seeds or experiment.seeds
    for key, chosen, known in (("--only", arms, names), ("--seeds", seeds, experiment.seeds)):
        for value in chosen:
            if value not in known:
                raise ConfigError(key, value, "not in the experiment", f"Choose among {known}.")
    runs = plan(experiment, args.num_gpus)
    records = {run.name: record for run in runs if (record := read_record(run))}
    code = 0
    if not args.report_only:
        chosen_runs = [run for run in runs if run.arm.name in arms and run.seed in seeds]
        for run in chosen_runs:
            if run.name not in records:
                check_unfinished(run)
        code = Runner(chosen_runs, records, args.jobs, args.num_gpus).run()
        if code == INTERRUPTED or not records:
            return code
    if not records:
        problem = "no run of this experiment is finished"
        raise ConfigError("results", str(experiment.results), problem, "Run some, without --report-only.")
    table = write_report(
        experiment.results,
        [records[run.name] for run in runs if run.name in records],
        iterations={arm.name: arm.iterations for arm in experiment.arms},
        baseline=experiment.baseline,
        seeds=experiment.seeds,
        facts={
            "command": f"python tools/compare.py {shlex.quote(str(path))}",
            "config": str(experiment.config),
            "seeds": ", ".join(map(str, experiment.seeds)),
            "iterations": next(str(a.iterations) for a in experiment.arms if a.name == experiment.baseline),
            "data": experiment.data,
        },
    )
    say(f"\n{table}\n\nreport: {experiment.results}/report.md, .csv, .json, .png")
    return code


# Reading and checking the experiment


class UniqueKeys(yaml.SafeLoader):
    """Refuses keys given twice, of which YAML keeps the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key, (key_node, _) in zip(keys, node.value):
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key!r} is given twice", problem_mark=key_node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file and check all that can be told without running anything.

    Raises:
        ConfigError: whatever about it cannot work.
    """
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (OSError, ValueError, yaml.YAMLError) as error:
        remedy = "Give the path of a YAML file; --help shows one."
        raise ConfigError("EXPERIMENT", str(path), f"cannot be read ({error})", remedy) from error
    if not isinstance(document, dict):
        raise ConfigError("EXPERIMENT", str(path), "not a table", "Write one as --help shows it.")
    check_table("", document, TOP_KEYS, required=[key for key in TOP_KEYS if key != "set"])
    config, shared = relative(Path(document["config"])), overrides("set", document.get("set", []))
    folders = {key: relative(Path(document[key])) for key in ("results", "output")}
    for key, folder in folders.items():
        if folder.is_file():
            raise ConfigError(key, str(folder), "is a file", "Name a folder.")
    seeds = document["seeds"]
    if not seeds or len(set(seeds)) < len(seeds) or not all(type(s) is int and s >= 0 for s in seeds):
        problem = "not a list of different whole numbers, each at least 0"
        raise ConfigError("seeds", seeds, problem, "Give at least one, such as [11, 12, 13].")
    arms = [read_arm(name, entry, shared, document["iterations"]) for name, entry in document["arms"].items()]
    names = [arm.name for arm in arms]
    if not arms:
        raise ConfigError("arms", document["arms"], "there are none", "Give at least the baseline.")
    if document["baseline"] not in names:
        problem = "not one of the arms"
        raise ConfigError("baseline", document["baseline"], problem, f"Choose among {names}.")

    cfg = load_config(str(config), shared, key="config", opts_key="set")
    if len(cfg.DATASETS.TEST) != 1:
        problem = "AP is compared on one data set"
        raise ConfigError("DATASETS.TEST", list(cfg.DATASETS.TEST), problem, "Name one, under 'set'.")
    for arm in arms:
        load_config(str(config), arm.overrides, key="config", opts_key=f"arms: {arm.name}")
    data = f"{', '.join(cfg.DATASETS.TRAIN)} to train, {cfg.DATASETS.TEST[0]} to measure"
    return Experiment(config, seeds=seeds, baseline=document["baseline"], arms=arms, data=data, **folders)


def read_arm(name: Any, entry: Any, shared: list[str], iterations: int) -> Arm:
    key = f"arms: {name}"
    if not isinstance(name, str):
        raise ConfigError("arms", name, "not a text", "Put the name in quotes.")
    if isinstance(entry, dict):
        check_table(f"{key}: ", entry, ARM_KEYS)
    elif not isinstance(entry, list):
        remedy = "Give [KEY, VALUE, ...], [] for none, or {set: [...], iterations: N}."
        raise ConfigError(key, entry, "neither a list of overrides nor a table", remedy)
    else:
        entry = {"set": entry}
    own = overrides(key, entry.get("set", []))
    if "DATASETS.TEST" in own[::2]:
        problem = "sets DATASETS.TEST, and AP on different images cannot be compared"
        raise ConfigError(key, own, problem, "Set it for all arms, under 'set'.")
    return Arm(name, [*shared, *own], entry.get("iterations", iterations))


def check_table(
    where: str, table: dict[str, Any], kinds: Mapping[str, type], required: Sequence[str] = ()
) -> None:
    """Check a table's keys and the kinds of its values, `where` being what goes before a key's name."""
    for key, value in table.items():
        if key not in kinds:
            raise ConfigError(f"{where}{key}", value, "unknown key", f"The keys are {', '.join(kinds)}.")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            kind = KINDS[kinds[key]]
            raise ConfigError(f"{where}{key}", value, f"not {kind}", f"Give {kind}.")
        if key == "iterations" and table[key] < 1:
            raise ConfigError(f"{where}{key}", value, "less than 1", "Give the length of a run.")
    for key in required:
        if key not in table:
            raise ConfigError(f"{where}{key}", None, "missing", f"Give {KINDS[kinds[key]]}; see --help.")


def overrides(key: str, entry: list[Any]) -> list[str]:
    """KEY, VALUE, ... as a command line has them."""
    if len(entry) % 2:
        raise ConfigError(key, entry, "an odd number of entries", "Give pairs: [KEY, VALUE, ...].")
    for own in OWN_KEYS:
        if own in entry[::2]:
            problem = f"{own} is set for every run by seeds, iterations and output"
            raise ConfigError(key, entry, problem, "Leave it out.")
    return [str(value) for value in entry]


def plan(experiment: Experiment, gpus: int) -> list[Run]:
    """All runs of the experiment, seed by seed, so that one that is interrupted has whole seeds."""
    solver = load_config(str(experiment.config)).SOLVER
    runs = []
    for seed in experiment.seeds:
        for arm in experiment.arms:
            name = f"{file_name(arm.name)}_seed{seed}"
            output, result = experiment.output / name, experiment.results / f"{name}.json"
            steps = scaled(solver.STEPS, arm.iterations / solver.MAX_ITER)
            opts = [
                *("OUTPUT_DIR", str(output), "SEED", str(seed), "SOLVER.MAX_ITER", str(arm.iterations)),
                *("SOLVER.STEPS", str(steps), "DISTILL.EXACT_RESUME", "True", *arm.overrides),
            ]
            command = ["tools/train_net.py", "--config-file", str(experiment.config), "--resume"]
            command += ["--num-gpus", str(gpus)]
            if gpus > 1:  # so that several such runs do not meet at one port
                command += ["--dist-url", "auto"]
            settings = changed(load_config(str(experiment.config), opts))
            runs.append(Run(arm, seed, [*command, *opts], settings, name, output, result))
    return runs


def file_name(arm: str) -> str:
    """A file name that is safe anywhere, and another one for every arm, whichever other arms there are."""
    plain = re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-")[:40]
    return plain if plain == arm else f"{plain}-{hashlib.sha256(arm.encode()).hexdigest()[:6]}".strip("-")


def scaled(steps: Sequence[int], factor: float) -> tuple[int, ...]:
    return tuple(sorted({round(step * factor) for step in steps}))


def changed(cfg: CfgNode) -> dict[str, Any]:
    """What a config has that is not the default, by dotted key; where it runs and writes left out."""
    defaults = get_cfg()
    add_mgd_config(defaults)
    standard = dict(flat(defaults))
    elsewhere = ("OUTPUT_DIR", "MODEL.DEVICE")
    found = {k: v for k, v in flat(cfg) if k not in elsewhere and (k not in standard or v != standard[k])}
    return json.loads(json.dumps(found))  # as it is read back: tuples are lists


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_record(run: Run) -> dict[str, Any] | None:
    """The record of a finished run; None if it is not finished.

    Raises:
        ConfigError: it is not one, or was made with other settings.
    """
    if not run.result.exists():
        return None
    remedy = "Delete or rename that file to run it anew, or restore the settings."
    try:
        record = json.loads(run.result.read_text())
        check_settings("results", run.result, record["settings"], run.settings, remedy)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError("results", str(run.result), "not the record of a run", remedy) from error
    return record


def check_unfinished(run: Run) -> None:
    """Refuse, with a ConfigError, to go on with what began with other settings."""
    if (run.output / "last_checkpoint").exists():
        remedy = "Delete or rename that folder to start anew, or restore the settings."
        started = load_config(str(run.output / "config.yaml"), key="output")
        check_settings("output", run.output, changed(started), run.settings, remedy)


def check_settings(key: str, path: Path, then: dict[str, Any], now: dict[str, Any], remedy: str) -> None:
    """Refuse, with a ConfigError, what an earlier start with other settings left."""
    differing = [
        f"{name} was {then.get(name, 'the default')!r} and is {now.get(name, 'the default')!r}"
        for name in sorted(then.keys() | now.keys())
        if name not in then or name not in now or then[name] != now[name]
    ]
    if differing:
        raise ConfigError(key, str(path), f"made with other settings: {'; '.join(differing)}", remedy)


# Running


class Process:
    """A run under way, in a session of its own, which a terminal's Ctrl-C does not reach.

    All its processes hold the lock on its console file: a run that outlived this tool is not started twice.

    Raises:
        Failed: such a run goes on.
    """

    def __init__(self, run: Run, environment: Mapping[str, str]) -> None:
        run.output.mkdir(parents=True, exist_ok=True)
        self.run, self.console, self.began = run, run.output / "console.txt", time.monotonic()
        self.peak_memory_mib = 0.0
        with self.console.open("a") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Failed(f"an earlier start still runs in {run.output}: wait for it or end it") from None
            out.truncate(0)
            self.process = subprocess.Popen(
                [sys.executable, *run.command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def ended(self) -> bool:
        pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
        if not pid:
            return False
        self.process.returncode = os.waitstatus_to_exitcode(status)
        self.peak_memory_mib = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        return True

    def kill(self) -> None:
        """At once: checkpoints are written aside, so this leaves the last one whole."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def output(self) -> str:
        return self.console.read_text(errors="replace")

    def iterations(self) -> tuple[int, int]:
        """Where this start began, and how many of the run's iterations are done."""
        output = self.output()
        first = re.search(r"Starting training from iteration (\d+)", output)
        start = int(first[1]) if first else 0
        printed = re.findall(r" iter: (\d+) ", output)
        return start, int(printed[-1]) + 1 if printed else start

    def measured(self) -> dict[str, Any]:
        """What the finished run found, and what it took.

        Raises:
            Failed: it did not finish, or has no AP.
        """
        if self.process.returncode:
            tail = "\n".join(self.output().splitlines()[-TAIL:])
            raise Failed(f"exit code {self.process.returncode}; the end of {self.console}:\n{tail}")
        lines = [json.loads(line) for line in (self.run.output / "metrics.json").read_text().splitlines()]
        length = self.run.arm.iterations
        # By iterations done; the last evaluation is logged behind the last iteration.
        evaluations = {min(line["iteration"] + 1, length): line for line in lines if "bbox/AP" in line}
        last = evaluations.get(length, {})
        if not math.isfinite(last.get("bbox/AP", math.nan)):
            raise Failed(f"no AP: it detected nothing, or there was nothing to detect; see {self.console}")
        seconds = [line["time"] for line in lines if "time" in line]
        gpu_memory = [int(mib) for mib in re.findall(r"max_mem: (\d+)M", self.output())]
        return {
            **{name: last[f"bbox/{name}"] for name in ("AP", "AP50", "AP75")},
            "AP_by_iteration": {str(i): line["bbox/AP"] for i, line in sorted(evaluations.items())},
            "seconds_per_iteration": statistics.median(seconds) if seconds else None,
            "peak_memory_mib": round(self.peak_memory_mib),
            "peak_gpu_memory_mib": max(gpu_memory, default=0) or None,
            # Of the start that finished it, which an interruption makes the later part of the run.
            "seconds": round(self.seconds(), 1),
            "resumed_from": self.iterations()[0],
        }


class Runner:
    """Runs what is not finished, some at a time, and adds to the records.

    Args:
        runs: those to have, in order.
        records: of all finished runs, by name; those of this start are added.
        jobs: how many run at a time.
        gpus: that each uses.
    """

    def __init__(self, runs: Sequence[Run], records: dict[str, dict[str, Any]], jobs: int, gpus: int) -> None:
        self.waiting = [run for run in runs if run.name not in records]
        self.total, self.records, self.jobs = len(runs), records, jobs
        self.running: list[Process] = []
        self.failed = 0
        self.environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        cores = os.cpu_count() or 1
        if jobs > 1:
            self.environment.setdefault("OMP_NUM_THREADS", str(max(cores // jobs, 1)))
            self.environment.setdefault("OMP_WAIT_POLICY", "passive")
        gpu = f"{gpus} x {torch.cuda.get_device_name()}" if gpus else "no GPU used"
        threads = self.environment.get("OMP_NUM_THREADS")
        share = f"runs at a time: {jobs}" + (f", threads of each: {threads}" if threads else "")
        self.machine = f"{platform.machine()}, {cores} CPU cores, {gpu}; {share}"

    def run(self) -> int:
        """All of them, to the end; the exit code."""
        signals: list[int] = []  # received; looked at where no process is just being started
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # as under nohup
                signal.signal(number, lambda number, _: signals.append(number))
        say(f"{self.total} runs, {self.total - len(self.waiting)} of them finished")
        reported = time.monotonic()
        try:
            while (self.waiting or self.running) and not signals:
                while self.waiting and len(self.running) < self.jobs and not signals:
                    self.start(self.waiting.pop(0))
                time.sleep(POLL_SECONDS)
                for process in list(self.running):
                    if process.ended():
                        self.running.remove(process)
                        self.finish(process)
                if time.monotonic() - reported > PROGRESS_SECONDS:
                    reported = time.monotonic()
                    for process in self.running:
                        done = process.iterations()[1]
                        say(f"  {process.run}: iteration {done}/{process.run.arm.iterations}")
        finally:
            for process in self.running:
                process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        if signals:
            say("interrupted: the same command goes on from the last checkpoints; --report-only reports")
            return INTERRUPTED
        return 1 if self.failed else 0

    def start(self, run: Run) -> None:
        try:
            self.running.append(Process(run, self.environment))
        except Failed as reason:
            self.fail(run, reason)
        else:
            say(f"{run}: begins; {self.progress()}")

    def finish(self, process: Process) -> None:
        run = process.run
        try:
            found = process.measured()
        except Failed as reason:
            self.fail(run, reason)
            return
        record = {
            **{"arm": run.arm.name, "seed": run.seed, "iterations": run.arm.iterations, **found},
            "date": date.today().isoformat(),
            "machine": self.machine,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "detectron2": detectron2_version,
            },
            "command": shlex.join(["python", *run.command]),
            "overrides": run.arm.overrides,
            "settings": run.settings,
        }
        run.result.parent.mkdir(parents=True, exist_ok=True)
        aside = run.result.with_suffix(".partial")
        aside.write_text(json.dumps(record, indent=2) + "\n")
        os.replace(aside, run.result)
        self.records[run.name] = record
        say(f"{run}: AP {record['AP']:.2f} in {clock(process.seconds())}; {self.progress()}")

    def fail(self, run: Run, reason: Failed) -> None:
        self.failed += 1
        say(f"{run}: failed: {reason}\n{self.progress()}")

    def progress(self) -> str:
        """How many runs are done, and the time that the others will take."""
        speeds: dict[str, list[float]] = {}
        for record in self.records.values():
            done = record["iterations"] - record["resumed_from"]
            if record["machine"] == self.machine and done:
                speeds.setdefault(record["arm"], []).append(record["seconds"] / done)
        left = [(run.arm.name, run.arm.iterations) for run in self.waiting]
        for process in self.running:
            start, done = process.iterations()
            arm = process.run.arm
            left.append((arm.name, arm.iterations - done))
            if done > start:
                speeds.setdefault(arm.name, []).append(process.seconds() / (done - start))
        seconds = time_left(speeds, left, self.jobs)
        remaining = "time left unknown" if seconds is None else f"about {clock(seconds)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        done = self.total - len(self.waiting) - len(self.running) - self.failed
        return f"{done} of {self.total} runs done{failed}, {remaining}"


def time_left(
    speeds: Mapping[str, Sequence[float]], left: Sequence[tuple[str, int]], jobs: int
) -> float | None:
    """Seconds until all runs are done; None while no speed is known.

    Args:
        speeds: seconds per iteration, all told, of the runs of each arm, as far as known. An arm without
            any is taken to be like the others.
        left: arm and missing iterations of each run that is not done.
        jobs: how many run at a time.
    """
    known = {arm: statistics.median(values) for arm, values in speeds.items()}
    if not known:
        return None
    typical = statistics.median(known.values())
    seconds = [known.get(arm, typical) * iterations for arm, iterations in left]
    return max([sum(seconds) / jobs, *seconds])


def clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def relative(path: Path) -> Path:
    """A path as seen from the repository, where it lies in it."""
    path = Path(os.path.abspath(path))
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
