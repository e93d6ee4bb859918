"""Registering own data from the config, and what is said about data that cannot work."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog

from mgd_det.datasets import check_datasets, register_datasets
from mgd_det.errors import ConfigError


def changed(cfg, tmp_path, change) -> str:
    """Register, as the training set, a copy of it whose JSON went through `change`; its name."""
    _, annotations, root = cfg.DATASETS.REGISTER[0]
    path = tmp_path / "changed.json"
    with open(annotations) as f:
        path.write_text(change(json.load(f)))
    name = f"changed_{tmp_path}"
    cfg.DATASETS.REGISTER = [*cfg.DATASETS.REGISTER, [name, str(path), root]]
    cfg.DATASETS.TRAIN = (name,)
    return name


def test_registering_twice_is_fine_and_reads_what_is_there(student_cfg):
    register_datasets(student_cfg)
    register_datasets(student_cfg)
    assert len(DatasetCatalog.get(student_cfg.DATASETS.TRAIN[0])) == 16
    check_datasets(student_cfg, training=True)


def test_a_name_that_is_taken(student_cfg):
    student_cfg.DATASETS.REGISTER = [["coco_2017_val", "a.json", "b"]]
    with pytest.raises(ConfigError, match=r"DATASETS\.REGISTER.*already registered.*another name"):
        register_datasets(student_cfg)


@pytest.mark.parametrize("entry", ["name", ["name", "a.json"], ["name", "a.json", 3]])
def test_an_entry_of_another_form(student_cfg, entry):
    student_cfg.DATASETS.REGISTER = [entry]
    with pytest.raises(ConfigError, match=r"DATASETS\.REGISTER.*image_root"):
        register_datasets(student_cfg)


def test_a_set_that_is_not_registered(student_cfg):
    student_cfg.DATASETS.TRAIN = ("nowhere",)
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN = 'nowhere'.*DATASETS\.REGISTER"):
        check_datasets(student_cfg, training=True)
    check_datasets(student_cfg, training=False)  # evaluation does not need it


def test_no_training_set(student_cfg):
    student_cfg.DATASETS.TRAIN = ()
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN"):
        check_datasets(student_cfg, training=True)


def test_missing_files_of_registered_and_built_in_sets(student_cfg, tmp_path):
    name = f"gone_{tmp_path}"
    student_cfg.DATASETS.REGISTER = [[name, str(tmp_path / "gone.json"), str(tmp_path)]]
    student_cfg.DATASETS.TRAIN = (name,)
    register_datasets(student_cfg)
    with pytest.raises(ConfigError, match=r"gone\.json does not exist"):
        check_datasets(student_cfg, training=True)
    student_cfg.DATASETS.TRAIN = ("coco_2017_train",)
    with pytest.raises(ConfigError, match="DETECTRON2_DATASETS"):
        check_datasets(student_cfg, training=True)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: "{", "is not JSON"),
        (lambda content: "[1, 2]", "not in COCO format"),
        (lambda content: json.dumps({"images": []}), "not in COCO format"),
        (lambda content: json.dumps({**content, "annotations": []}), "no boxes to train on"),
        (
            lambda content: json.dumps(
                {**content, "annotations": [{**a, "iscrowd": 1} for a in content["annotations"]]}
            ),
            "no boxes to train on",
        ),
        (
            lambda content: json.dumps(
                {**content, "categories": content["categories"] + [{"id": 99, "name": "seventh"}]}
            ),
            r"MODEL\.RETINANET\.NUM_CLASSES = 6.*has 7 classes.*NUM_CLASSES 7",
        ),
    ],
    ids=[
        "not JSON",
        "a list",
        "lacks entries",
        "no annotations",
        "crowds only",
        "a class too many",
    ],
)
def test_annotation_files_that_cannot_be_trained_on(student_cfg, tmp_path, change, match):
    changed(student_cfg, tmp_path, change)
    register_datasets(student_cfg)
    with pytest.raises(ConfigError, match=match):
        check_datasets(student_cfg, training=True)
