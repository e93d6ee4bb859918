"""The tiny distiller that all checks train: its data, its teacher, its config and its command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _checkout import ROOT
from checking.jobs import run


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


def train_net(config: Path, output: Path, *arguments: Any, gpus: int = 0) -> list[Any]:
    """The command that trains a config."""
    command = [ROOT / "tools/train_net.py", "--config-file", config, "--num-gpus", gpus]
    return [*command, *arguments, "OUTPUT_DIR", output]
