"""The networks of a run, and the images that they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from torch import nn
from visualizing.picture import Missing
from visualizing.runs import Run

from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.modeling.taps import evaluating
from mgd_det.modeling.teacher import Teacher, TeacherSpec
from mgd_det.run.evaluation import load_student, teacher_test_config


class Box(NamedTuple):
    """A box of the ground truth, or of a detector."""

    corners: tuple[float, ...]  # x0, y0, x1, y1 in pixels of the image file
    label: int  # number of its class in the data set
    score: float | None = None  # of a detector


class Sample(NamedTuple):
    """An image of a data set."""

    record: dict[str, Any]  # as Detectron2's catalogs have it
    truth: list[Box]
    crowds: list[Box]


class Images(NamedTuple):
    """Some images of a data set."""

    samples: list[Sample]
    classes: list[str]
    dataset: str


def find_images(run: Run, count: int) -> Images:
    """Images at equal distances in the run's first test set, so that their choice is nobody's.

    Raises:
        ConfigError: the data set is not there, or is broken.
    """
    register_datasets(run.cfg)
    check_datasets(run.cfg, training=False)
    name = run.cfg.DATASETS.TEST[0]
    records = get_detection_dataset_dicts(name, filter_empty=False)
    count = min(count, len(records))
    chosen = [records[i * len(records) // count] for i in range(count)]
    samples = [Sample(record, *ground_truth(record)) for record in chosen]
    return Images(samples, list(MetadataCatalog.get(name).thing_classes), name)


def ground_truth(record: dict[str, Any]) -> tuple[list[Box], list[Box]]:
    """The boxes of an image: of objects, and of crowds."""
    objects: list[Box] = []
    crowds: list[Box] = []
    for annotation in record.get("annotations", []):
        corners = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        kind = crowds if annotation.get("iscrowd", 0) else objects
        kind.append(Box(tuple(corners), annotation["category_id"]))
    return objects, crowds


def load_run_student(run: Run, like: CfgNode) -> nn.Module:
    """The student of a run's checkpoint, to be tested on the data of the config `like`.

    Raises:
        Missing: the run has no checkpoint yet.
        ConfigError: it does not hold this student, or knows other classes than the data.
    """
    if run.checkpoint is None:
        raise Missing(f"The run {run.name} has written no checkpoint yet.")
    cfg = run.cfg.clone()
    cfg.DATASETS = like.DATASETS.clone()
    check_datasets(cfg, training=False)
    cfg.MODEL.WEIGHTS = str(run.checkpoint)
    return load_student(cfg, resume=False)


def load_run_teacher(run: Run) -> Teacher:
    """The teacher that a run learns from.

    Raises:
        Missing: it has none.
        ConfigError: its files are not where the run's config says.
    """
    if not run.methods:
        raise Missing("No method of distillation was at work in this run, so it had no teacher to look at.")
    return TeacherSpec.from_config(run.cfg).load(torch.device("cpu"))


def check_teacher_classes(run: Run) -> CfgNode:
    """The config by which a run's teacher is tested on the student's data.

    Raises:
        ConfigError: the teacher knows other classes than the data.
    """
    cfg = teacher_test_config(run.cfg)
    check_datasets(run.cfg, training=False, student=False, teacher=cfg)
    return cfg


def network_input(cfg: CfgNode, sample: Sample) -> dict[str, Any]:
    """The image as a network of this config is tested on it: {"image": (C, h, w), "height", "width"}."""
    return DatasetMapper(cfg, False)(sample.record)


@torch.no_grad()
def detect(model: nn.Module, cfg: CfgNode, samples: Sequence[Sample], least: float) -> list[list[Box]]:
    """Returns the boxes that a detector finds in each image with a score of at least `least`."""
    found = []
    with evaluating(model):
        for sample in samples:
            instances = model([network_input(cfg, sample)])[0]["instances"]
            rows = zip(
                instances.pred_boxes.tensor.tolist(),
                instances.pred_classes.tolist(),
                instances.scores.tolist(),
            )
            found.append([Box(tuple(c), label, score) for c, label, score in rows if score >= least])
    return found
