"""Small training commands of which no process outlives its check, and the states that they leave."""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from _checkout import ROOT
from commandline import Figures
from processes import ONE_THREAD, Failed, Process, Word

from mgd_det.detectron2_types import State

PATIENCE = 120  # seconds that what a job started may outlive it
MARK = "SELFCHECK"  # variable in the environment of all processes of a job


class Job(Process):
    """A Python command. Leaving the `with` block kills it and all that it started."""

    def __init__(self, log: Path, *command: Word) -> None:
        self.mark = uuid.uuid4().hex
        super().__init__(log, *command, environment={**ONE_THREAD, MARK: self.mark})

    def kill(self) -> None:
        """Kill all of its processes, also those that left its session."""
        super().kill()
        deadline = time.monotonic() + PATIENCE
        # Again and again, for those that are just being started.
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)

    def processes(self, **variables: str) -> list[psutil.Process]:
        """Returns its live processes, orphans included, that have these variables in their environment."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if {MARK: self.mark, **variables}.items() <= process.environ().items():
                    found.append(process)
        return found

    def saved(self) -> list[int]:
        """Returns the iterations at whose end it began to write a checkpoint."""
        return [int(i) for i in re.findall(r"saving checkpoint to \S+_(\d+)\.pth", self.output())]


def run(log: Path, *command: Word) -> Job:
    """Run a command to its end, which must be a good one."""
    with Job(log, *command) as job:
        return job.finish()


def load(path: Path) -> State:
    return torch.load(path, map_location="cpu", weights_only=True)


def final(output: Path) -> State:
    return load(output / "model_final.pth")


def equal_values(found: object, expected: object) -> int:
    """Returns the number of values in two states, which must be the same in both, bit for bit."""
    a, b = dict(leaves(found)), dict(leaves(expected))
    names = a.keys() | b.keys()
    if differing := sorted(name for name in names if not same(a.get(name), b.get(name))):
        raise Failed(f"{len(differing)} of {len(names)} values differ, such as {', '.join(differing[:3])}")
    return len(names)


def leaves(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Yields the path and value of each leaf of nested tables and lists; times are left out."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}/{key}")
    elif "time" not in name and "seconds" not in name:
        yield name, value


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    # The AP of a network that finds nothing is no number, which is not equal to itself.
    return type(a) is type(b) and (a == b or (a != a and b != b))


def deviation(found: State, expected: State) -> float:
    """Returns the largest difference in any tensor, relative to the largest value of that tensor."""
    if list(found) != list(expected):
        raise Failed("the two runs name different tensors")
    pairs = [(torch.as_tensor(found[n]).double(), torch.as_tensor(v).double()) for n, v in expected.items()]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for a, b in pairs)


def within(limit: float, figures: Figures) -> Figures:
    for name, value in figures.items():
        if not value <= limit:
            raise Failed(f"{name} {value:.3g}, more than {limit:g}")
    return figures


def prepare(folder: Path) -> Path:
    """Make data, train a teacher for a few iterations, and return the config of its student."""
    counts = ("--train", 16, "--val", 6, "--test", 6)
    run(folder / "data.log", ROOT / "tools/make_demo_data.py", "--out", folder / "data", *counts)
    config = make_config(folder, folder / "data", folder / "teacher")
    wider = ("MODEL.RESNETS.WIDTH_PER_GROUP", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 128)
    keys = (*wider, "DISTILL.ENABLED", False, "SOLVER.MAX_ITER", 5)
    run(folder / "teacher.log", *train_net(config, folder / "teacher", *keys))
    return config


def make_config(folder: Path, data: Path, teacher: Path) -> Path:
    """The config file of the tiny distiller that all checks train."""
    resnets = {"DEPTH": 50, "STEM_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 8, "RES2_OUT_CHANNELS": 64}
    config = {
        "_BASE_": str(ROOT / "configs/demo/student_mgd.yaml"),
        "MODEL": {"RESNETS": resnets, "FPN": {"OUT_CHANNELS": 16}, "RETINANET": {"NUM_CONVS": 1}},
        "INPUT": {"MIN_SIZE_TRAIN": [64], "MIN_SIZE_TEST": 64},
        "DATASETS": {
            "REGISTER": [["selfcheck", f"{data}/annotations/train.json", f"{data}/train"]],
            "TRAIN": ["selfcheck"],
            "TEST": [],
        },
        "SOLVER": {"IMS_PER_BATCH": 2, "WARMUP_ITERS": 5, "STEPS": []},
        "DISTILL": {
            "TEACHER": {"CONFIG_FILE": f"{teacher}/config.yaml", "WEIGHTS": f"{teacher}/model_final.pth"},
            "MATCHING": {"NUM_IMAGES": 4, "PERIOD": 5, "ONLINE_EVERY": 2},
        },
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return path


def train_net(config: Path, output: Path, *arguments: Word, gpus: int = 0) -> list[Word]:
    """The command that trains a config."""
    own: list[Word] = ["--config-file", config, "--num-gpus", gpus]
    return [ROOT / "tools/train_net.py", *own, *arguments, "OUTPUT_DIR", output]
