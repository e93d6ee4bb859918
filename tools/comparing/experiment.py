"""Reading and checking an experiment, and planning its runs."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from _checkout import ROOT
from comparing.gate import Gate, read_gate
from comparing.published import Published, read_published
from comparing.tables import check_table, read_table
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from mgd_det.config import add_mgd_config, load_config
from mgd_det.config.functions import FLAG
from mgd_det.errors import ConfigError

TOP_KEYS: dict[str, type] = {
    "config": str,
    "functions": list,
    "results": str,
    "output": str,
    "iterations": int,
    "seeds": list,
    "baseline": str,
    "set": list,
    "pairs": list,
    "gate": dict,
    "arms": dict,
}
OPTIONAL = ("functions", "set", "pairs", "gate")
ARM_KEYS: dict[str, type] = {"set": list, "iterations": int, "published": list}
BASE = "_BASE_"  # another file, into whose table this one's is merged
SEED = "{seed}"  # an override's value that is each run's own seed
# Set for every run by this tool.
OWN_KEYS = ("SEED", "OUTPUT_DIR", "SOLVER.MAX_ITER", "DISTILL.EXACT_RESUME")


class Arm(NamedTuple):
    """One recipe."""

    name: str
    overrides: list[str]  # the experiment's and its own
    iterations: int
    published: Sequence[Published] = ()  # figures of others


class Experiment(NamedTuple):
    """An experiment file, checked."""

    config: Path
    results: Path
    output: Path
    seeds: list[int]
    baseline: str
    pairs: list[tuple[str, str]]  # of arms that are compared with each other, too
    arms: list[Arm]
    shared: list[str]  # overrides of all arms
    trained: str  # names of the data sets that are trained on
    tested: str  # name of the one that AP is measured on
    gate: Gate | None = None
    functions: Sequence[str] = ()  # that add the keys of other projects


def read_experiment(path: Path) -> Experiment:
    """Read an experiment file and check all that can be told without running anything.

    Raises:
        ConfigError: whatever about it cannot work.
    """
    document = read_document(path)
    check_table("", document, TOP_KEYS, required=[key for key in TOP_KEYS if key not in OPTIONAL])
    config, shared = relative(Path(document["config"])), overrides("set", document.get("set", []))
    folders = {key: relative(Path(document[key])) for key in ("results", "output")}
    for key, folder in folders.items():
        if folder.is_file():
            raise ConfigError(key, str(folder), "is a file", "Name a folder.")
    seeds = document["seeds"]
    if not seeds or not all(type(s) is int and s >= 0 for s in seeds) or len(set(seeds)) < len(seeds):
        problem = "not a list of different whole numbers, each at least 0"
        raise ConfigError("seeds", seeds, problem, "Give at least one, such as [11, 12, 13].")
    arms = [read_arm(name, entry, shared, document["iterations"]) for name, entry in document["arms"].items()]
    names = [arm.name for arm in arms]
    if not arms:
        raise ConfigError("arms", document["arms"], "there are none", "Give at least the baseline.")
    if document["baseline"] not in names:
        problem = "not one of the arms"
        raise ConfigError("baseline", document["baseline"], problem, f"Choose among {names}.")
    pairs = read_pairs(document.get("pairs", []), names)

    functions = [str(name) for name in document.get("functions", [])]
    opts = with_seed(shared, seeds[0])
    cfg = load_config(str(config), opts, key="config", opts_key="set", functions=functions)
    if len(cfg.DATASETS.TEST) != 1:
        problem = "AP is compared on one data set"
        raise ConfigError("DATASETS.TEST", list(cfg.DATASETS.TEST), problem, "Name one, under 'set'.")
    check_arms(config, arms, seeds[0], functions)
    gate = None
    if "gate" in document:
        gate = read_gate(document["gate"], {arm.name: arm.iterations for arm in arms}, document["baseline"])
        check_gate(gate, cfg)
    return Experiment(
        config,
        seeds=seeds,
        baseline=document["baseline"],
        pairs=pairs,
        arms=arms,
        shared=shared,
        trained=", ".join(cfg.DATASETS.TRAIN),
        tested=cfg.DATASETS.TEST[0],
        gate=gate,
        functions=functions,
        **folders,
    )


def read_document(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Returns the table in a file, merged into that of its `_BASE_` as Detectron2 merges configs.

    Raises:
        ConfigError: one of the files cannot be read, or `_BASE_` leads back to a file that it began from.
    """
    document = read_table("EXPERIMENT", path)
    base = document.pop(BASE, None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise ConfigError(BASE, base, "not a text", "Give a path, as seen from the file's own folder.")
    below = (*above, path.resolve())
    if (path.parent / base).resolve() in below:
        raise ConfigError(BASE, base, f"{path} is its own base", "Name another file, or leave it out.")
    return merged(read_document(path.parent / base, below), document)


def merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a table with the keys of both; of two values that are not both tables, the second."""
    table = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(table.get(key), dict)
        table[key] = merged(table[key], value) if both else value
    return table


def read_pairs(pairs: Sequence[object], names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs of arms that are compared with each other."""
    found = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(arm in names for arm in pair)):
            raise ConfigError("pairs", pair, "not two of the arms", f"Give [ONE, OTHER], among {names}.")
        found.append((pair[0], pair[1]))
    return found


def check_arms(config: Path, arms: Sequence[Arm], seed: int, functions: Sequence[str]) -> None:
    """Raises ConfigError if the config of an arm cannot be loaded, or sets the length of its run."""
    for arm in arms:
        own = load_config(
            str(config),
            with_seed(arm.overrides, seed),
            key="config",
            opts_key=f"arms: {arm.name}",
            functions=functions,
        )
        size = own.SOLVER.REFERENCE_WORLD_SIZE
        if size:
            problem = "changes the lengths of runs, which 'iterations' gives"
            remedy = "Give batch, learning rate and iterations for the processes that run, and 0 here."
            raise ConfigError("SOLVER.REFERENCE_WORLD_SIZE", size, problem, remedy)


def check_gate(gate: Gate, cfg: CfgNode) -> None:
    """Raises ConfigError if what the gate needs beside the arms cannot be measured."""
    known = {*(entry[0] for entry in cfg.DATASETS.REGISTER), *DatasetCatalog.list()}
    if gate.data not in known:
        problem, remedy = "no data set of that name is registered", "List it in DATASETS.REGISTER."
        raise ConfigError("gate: data", gate.data, problem, remedy)
    if not cfg.DISTILL.TEACHER.CONFIG_FILE:
        problem = "the gate compares the teacher with the baseline, and none is given"
        remedy = "Name it in 'config' or under 'set', for all arms."
        raise ConfigError("DISTILL.TEACHER.CONFIG_FILE", "", problem, remedy)


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
    published = read_published(f"{key}: ", entry.get("published", []))
    return Arm(name, [*shared, *own], entry.get("iterations", iterations), published)


def overrides(key: str, entry: list[Any]) -> list[str]:
    """KEY, VALUE, ... as a command line has them."""
    if len(entry) % 2:
        raise ConfigError(key, entry, "an odd number of entries", "Give pairs: [KEY, VALUE, ...].")
    for own in OWN_KEYS:
        if own in entry[::2]:
            problem = f"{own} is set for every run by seeds, iterations and output"
            raise ConfigError(key, entry, problem, "Leave it out.")
    return [str(value) for value in entry]


def with_seed(overrides: Sequence[str], seed: int) -> list[str]:
    """Overrides for the runs with one seed."""
    return [str(seed) if value == SEED else value for value in overrides]


def relative(path: Path) -> Path:
    """A path as seen from the repository, where it lies in it."""
    path = Path(os.path.abspath(path))
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


class Run(NamedTuple):
    """One arm with one seed."""

    arm: Arm
    seed: int
    command: list[str]  # without the interpreter
    settings: dict[str, Any]  # that its result depends on
    files: dict[str, str]  # and files, with their digests
    name: str  # of its files
    output: Path
    records: Path  # file that its record is appended to

    def __str__(self) -> str:
        return f"{self.arm.name}, seed {self.seed}"


def plan(experiment: Experiment, gpus: int) -> list[Run]:
    """Returns all runs of the experiment, seed by seed, so that an interrupted one has whole seeds."""
    functions = experiment.functions
    solver = load_config(str(experiment.config), functions=functions).SOLVER
    runs = []
    for seed in experiment.seeds:
        for arm in experiment.arms:
            name = f"{file_name(arm.name)}_seed{seed}"
            output, records = experiment.output / name, experiment.results / "runs.jsonl"
            steps = scaled(solver.STEPS, solver.MAX_ITER, arm.iterations)
            opts = [
                *("OUTPUT_DIR", str(output), "SEED", str(seed), "SOLVER.MAX_ITER", str(arm.iterations)),
                *("SOLVER.STEPS", str(steps), "DISTILL.EXACT_RESUME", "True"),
                *with_seed(arm.overrides, seed),
            ]
            cfg = load_config(str(experiment.config), opts, functions=functions)
            command = [*start_of_command(experiment, "--resume", gpus), *opts]
            runs.append(Run(arm, seed, command, changed(cfg), files(cfg), name, output, records))
    return runs


def start_of_command(experiment: Experiment, flag: str, gpus: int) -> list[str]:
    """Returns the arguments of Python, without overrides, that run the experiment's config with a flag."""
    command = ["tools/train_net.py", "--config-file", str(experiment.config), flag]
    command += ["--num-gpus", str(gpus), *(f"{FLAG}={function}" for function in experiment.functions)]
    if gpus > 1:  # so that several such runs do not meet at one port
        command += ["--dist-url", "auto"]
    return command


def file_name(arm: str) -> str:
    """Returns a file name that is safe anywhere and differs from that of every other arm."""
    plain = re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-")[:40]
    return plain if plain == arm else f"{plain}-{hashlib.sha256(arm.encode()).hexdigest()[:6]}".strip("-")


def scaled(steps: Sequence[int], length: int, new_length: int) -> tuple[int, ...]:
    """Returns the iterations at which the learning rate falls, scaled to another length of the run."""
    moved = {round(step * new_length / length) for step in steps}
    return tuple(sorted(step for step in moved if 0 < step < new_length))


def changed(cfg: CfgNode) -> dict[str, Any]:
    """Returns the keys of a config that differ from the defaults, without OUTPUT_DIR and MODEL.DEVICE."""
    defaults = get_cfg()
    add_mgd_config(defaults)
    standard = as_read(dict(flat(defaults)))
    elsewhere = ("OUTPUT_DIR", "MODEL.DEVICE")
    found = as_read({key: value for key, value in flat(cfg) if key not in elsewhere})
    return {key: value for key, value in found.items() if key not in standard or value != standard[key]}


def files(cfg: CfgNode) -> dict[str, str]:
    """Returns SHA-256 digests of the local files that a run reads, without its images, by path."""
    used = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST, *cfg.DATASETS.UNLABELED}
    paths = [entry[1] for entry in cfg.DATASETS.REGISTER if entry[0] in used]
    paths.append(cfg.MODEL.WEIGHTS)
    if cfg.DISTILL.ENABLED:
        paths += [cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.WEIGHTS]
    return {path: digest(path) for path in sorted(paths) if Path(path).is_file()}


@functools.cache
def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def as_read(settings: dict[str, Any]) -> dict[str, Any]:
    """Returns settings as JSON gives them back: with lists instead of tuples."""
    return json.loads(json.dumps(settings))


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
