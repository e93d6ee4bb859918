"""Reading and checking an experiment: what is compared with what."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from _checkout import ROOT

from mgd_det.config import load_config
from mgd_det.errors import ConfigError

TOP_KEYS: dict[str, type] = {
    "config": str,
    "results": str,
    "output": str,
    "iterations": int,
    "seeds": list,
    "baseline": str,
    "set": list,
    "pairs": list,
    "arms": dict,
}
OPTIONAL = ("set", "pairs")
ARM_KEYS: dict[str, type] = {"set": list, "iterations": int}
KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}
SEED = "{seed}"  # an override's value that is each run's own seed
# Set for every run by this tool.
OWN_KEYS = ("SEED", "OUTPUT_DIR", "SOLVER.MAX_ITER", "DISTILL.EXACT_RESUME")


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
    pairs: list[tuple[str, str]]  # of arms that are compared with each other, too
    arms: list[Arm]
    data: str  # what is trained on, and what AP is measured on


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
    document = read_document(path)
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
    pairs = read_pairs(document.get("pairs", []), names)

    cfg = load_config(str(config), with_seed(shared, seeds[0]), key="config", opts_key="set")
    if len(cfg.DATASETS.TEST) != 1:
        problem = "AP is compared on one data set"
        raise ConfigError("DATASETS.TEST", list(cfg.DATASETS.TEST), problem, "Name one, under 'set'.")
    check_arms(config, arms, seeds[0])
    data = f"{', '.join(cfg.DATASETS.TRAIN)} to train, {cfg.DATASETS.TEST[0]} to measure"
    return Experiment(
        config, seeds=seeds, baseline=document["baseline"], pairs=pairs, arms=arms, data=data, **folders
    )


def read_document(path: Path) -> dict[str, Any]:
    """Returns the table in a file, its keys and the kinds of their values checked."""
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys)
    except (OSError, ValueError, yaml.YAMLError) as error:
        remedy = "Give the path of a YAML file; --help shows one."
        raise ConfigError("EXPERIMENT", str(path), f"cannot be read ({error})", remedy) from error
    if not isinstance(document, dict):
        raise ConfigError("EXPERIMENT", str(path), "not a table", "Write one as --help shows it.")
    check_table("", document, TOP_KEYS, required=[key for key in TOP_KEYS if key not in OPTIONAL])
    return document


def read_pairs(pairs: Sequence[object], names: Sequence[str]) -> list[tuple[str, str]]:
    """Returns the pairs of arms that are compared with each other."""
    found = []
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and all(arm in names for arm in pair)):
            raise ConfigError("pairs", pair, "not two of the arms", f"Give [ONE, OTHER], among {names}.")
        found.append((pair[0], pair[1]))
    return found


def check_arms(config: Path, arms: Sequence[Arm], seed: int) -> None:
    """Raises ConfigError if the config of an arm cannot be loaded, or sets the length of its run."""
    for arm in arms:
        own = load_config(
            str(config), with_seed(arm.overrides, seed), key="config", opts_key=f"arms: {arm.name}"
        )
        size = own.SOLVER.REFERENCE_WORLD_SIZE
        if size:
            problem = "changes the lengths of runs, which 'iterations' gives"
            remedy = "Give batch, learning rate and iterations for the processes that run, and 0 here."
            raise ConfigError("SOLVER.REFERENCE_WORLD_SIZE", size, problem, remedy)


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


def with_seed(overrides: Sequence[str], seed: int) -> list[str]:
    """Overrides for the runs with one seed."""
    return [str(seed) if value == SEED else value for value in overrides]


def relative(path: Path) -> Path:
    """A path as seen from the repository, where it lies in it."""
    path = Path(os.path.abspath(path))
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
