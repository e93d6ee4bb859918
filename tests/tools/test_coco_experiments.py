"""The experiments on COCO: without COCO they end in one line; on two photographs in its layout they run."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import sklearn.datasets
import torch
import yaml
from comparing.experiment import plan, read_experiment
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from detectron2.modeling import build_model
from helpers.commands import ROOT
from helpers.experiments import error_of

from mgd_det.config import load_config
from mgd_det.modeling.teacher import TeacherSpec
from mgd_det.rng import isolated_rng
from mgd_det.run.main import argument_parser, main

EXPERIMENTS = ["coco_r18", "coco_r50"]
needs_no_coco = pytest.mark.skipif(
    (ROOT / MetadataCatalog.get("coco_2017_train").json_file).exists(), reason="COCO is there"
)

HEAD = {"MODEL.FPN.OUT_CHANNELS": 16, "MODEL.RETINANET.NUM_CONVS": 1}
NARROW = {"MODEL.RESNETS.WIDTH_PER_GROUP": 8, "MODEL.RESNETS.RES2_OUT_CHANNELS": 32}
SMALL = {
    **{"MODEL.WEIGHTS": "", "DISTILL.MATCHING.NUM_IMAGES": 2, "DATALOADER.NUM_WORKERS": 0},
    **{"SOLVER.IMS_PER_BATCH": 2, "INPUT.MIN_SIZE_TRAIN": "(64,)"},
    **{"SOLVER.BASE_LR": 1e-6, "SOLVER.CLIP_GRADIENTS.ENABLED": True},  # features of random weights are large
    **{"INPUT.MIN_SIZE_TEST": 64, "TEST.DETECTIONS_PER_IMAGE": 5},
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,  # two iterations leave nothing above the usual one
}


@needs_no_coco
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_without_coco_one_line_says_so(name, capsys, monkeypatch):
    error = error_of(capsys, monkeypatch, ROOT / f"configs/experiments/{name}.yaml", "--num-gpus", 0)
    assert "error: DATASETS.TRAIN = 'coco_2017_train': its annotation file" in error
    assert "builtin_datasets.html says where to get them" in error
    assert not (ROOT / "output" / name).exists()


def opts(*settings: dict) -> list:
    return [item for table in settings for pair in table.items() for item in pair]


def make_coco(folder: Path) -> None:
    """Two photographs, a box in each, as both splits."""
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": c["id"], "name": c["name"]} for c in COCO_CATEGORIES if c["isthing"]]
    names, boxes = ("china.jpg", "flower.jpg"), ([20, 20, 300, 200], [150, 100, 250, 250])
    size = {"width": 640, "height": 427}
    images = [{"id": i, "file_name": name, **size} for i, name in enumerate(names, 1)]
    annotations = [
        {"id": i, "image_id": i, "category_id": i, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(boxes, 1)
    ]
    for split in ("train2017", "val2017"):
        (folder / split).mkdir()
        for name in names:
            shutil.copy(Path(sklearn.datasets.__file__).parent / "images" / name, folder / split)
        text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
        (folder / f"annotations/instances_{split}.json").write_text(text)


@needs_no_coco
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_arm_runs_on_two_photographs(name, tmp_path, monkeypatch):
    """Two iterations of narrow networks without trained weights; all else is the experiment's own."""
    make_coco(tmp_path / "datasets/coco")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    document = yaml.safe_load((ROOT / f"configs/experiments/{name}.yaml").read_text())
    spec = TeacherSpec.from_config(load_config(document["config"]))
    teacher = ["MODEL.DEVICE", "cpu", *opts(HEAD, NARROW)]
    with isolated_rng():
        model = build_model(dataclasses.replace(spec, opts=tuple(teacher)).config())
    torch.save({"model": model.state_dict()}, "teacher.pth")
    narrow = {} if name == "coco_r18" else NARROW  # a basic block's width is given
    of_teacher = {"DISTILL.TEACHER.WEIGHTS": "teacher.pth", "DISTILL.TEACHER.OPTS": teacher}
    document.update(iterations=2, seeds=[1], set=[*document["set"], *opts(SMALL, HEAD, narrow, of_teacher)])
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(document))
    for run in plan(read_experiment(path), 0):
        main(argument_parser("").parse_args(run.command[1:]))
        lines = [json.loads(line) for line in (run.output / "metrics.json").read_text().splitlines()]
        assert "bbox/AP" in lines[-1], run.arm.name
        assert (run.output / "model_final.pth").exists()
