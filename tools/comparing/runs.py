"""The runs of an experiment."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from comparing.experiment import Arm, Experiment, with_seed
from detectron2.config import CfgNode, get_cfg

from mgd_det.config import add_mgd_config, load_config


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
    solver = load_config(str(experiment.config)).SOLVER
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
            command = ["tools/train_net.py", "--config-file", str(experiment.config), "--resume"]
            command += ["--num-gpus", str(gpus)]
            if gpus > 1:  # so that several such runs do not meet at one port
                command += ["--dist-url", "auto"]
            cfg = load_config(str(experiment.config), opts)
            runs.append(Run(arm, seed, [*command, *opts], changed(cfg), files(cfg), name, output, records))
    return runs


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
    """Returns SHA-256 digests of the local weights and annotations that a run reads, by path; no images."""
    used = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    paths = [entry[1] for entry in cfg.DATASETS.REGISTER if entry[0] in used]
    paths += [cfg.MODEL.WEIGHTS, cfg.DISTILL.TEACHER.WEIGHTS if cfg.DISTILL.ENABLED else ""]
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
