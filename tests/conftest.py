"""Fixtures: a small real COCO-format data set, and small real Detectron2 networks."""

from __future__ import annotations

import logging
import os
from pathlib import Path

# Before torch starts its threads: tests run side by side, and threads that spin starve the others.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("DETECTRON2_DATASETS", None)  # COCO is not there, wherever the suite runs

import make_demo_data
import pytest
import torch
from detectron2.structures import Boxes, Instances
from helpers.detectors import small_config

from mgd_det.engine.trainer import Trainer
from mgd_det.rng import isolated_rng


@pytest.fixture
def without_old_handlers(monkeypatch):
    """Detectron2's loggers without the handlers that other tests have left, whose streams are closed."""
    for name in ("detectron2", "fvcore"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [logging.NullHandler()])


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory) -> Path:
    """A demonstration set of a few images, made by the tool that makes the real one."""
    out = tmp_path_factory.mktemp("data") / "demo"
    counts = ["--train", "16", "--val", "6", "--test", "6"]
    make_demo_data.main(["--out", str(out), "--size", "96", "96", *counts])
    return out


@pytest.fixture
def student_cfg(demo_data, tmp_path):
    """A config that trains the student alone."""
    return small_config(demo_data, tmp_path / "run")


@pytest.fixture(scope="session")
def teacher_run(demo_data, tmp_path_factory) -> Path:
    """What an earlier run leaves: config.yaml and model_final.pth of a narrow R-50, untrained."""
    folder = tmp_path_factory.mktemp("teacher")
    cfg = small_config(demo_data, folder, "MODEL.RESNETS.DEPTH", 50)
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 16, 128
    (folder / "config.yaml").write_text(cfg.dump())
    with isolated_rng():
        torch.manual_seed(7)
        model = Trainer.build_model(cfg)
        for module in model.modules():  # as after training: batch norms that are no identities
            if isinstance(module, torch.nn.BatchNorm2d) and module.affine:
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.5, 0.5)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    return folder


@pytest.fixture
def mgd_cfg(student_cfg, teacher_run):
    """A config that distils the student with MGD."""
    student_cfg.DISTILL.ENABLED = True
    student_cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher_run / "config.yaml")
    student_cfg.DISTILL.TEACHER.WEIGHTS = str(teacher_run / "model_final.pth")
    return student_cfg


@pytest.fixture
def cfg_with_fpnless_teacher(mgd_cfg, teacher_run, tmp_path):
    """A config whose teacher has no FPN, and stride 16 at res5."""
    saved = torch.load(teacher_run / "model_final.pth")["model"]
    state = {name.replace("backbone.bottom_up.", "backbone."): value for name, value in saved.items()}
    torch.save({"model": state}, tmp_path / "fpnless.pth")
    teacher = mgd_cfg.DISTILL.TEACHER
    teacher.WEIGHTS, teacher.ALLOW_PARTIAL_WEIGHTS = str(tmp_path / "fpnless.pth"), True
    teacher.OPTS = [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.RES5_DILATION", 2),
        *("MODEL.RETINANET.IN_FEATURES", ["res5"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32]]),
    ]
    return mgd_cfg


@pytest.fixture
def images() -> list[dict]:
    """Two images of different sizes, without instances."""
    generator = torch.Generator().manual_seed(3)
    sizes = [(3, 64, 96), (3, 96, 64)]
    return [{"image": torch.randint(0, 256, size, generator=generator, dtype=torch.uint8)} for size in sizes]


@pytest.fixture
def labelled(images) -> list[dict]:
    """The same with one box each."""
    for x in images:
        x["instances"] = Instances(x["image"].shape[1:])
        x["instances"].gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]))
        x["instances"].gt_classes = torch.tensor([1])
    return images
