"""The files, metrics, images and networks of runs, checked before anything is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detectron2.structures import BoxMode
from torch import nn
from visualizing.page import Missing

from mgd_det.config import load_config, uses_teacher
from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.errors import ConfigError
from mgd_det.modeling.taps import evaluating
from mgd_det.modeling.teacher import Teacher, TeacherSpec
from mgd_det.run.evaluation import load_student, teacher_test_config
from mgd_det.run.metrics import read_metrics

Points = dict[int, float]  # iteration -> value, in the order of the iterations
Series = Mapping[str, Points]  # scalar -> its points


def read_series(path: Path) -> dict[str, Points]:
    """Returns every scalar's finite values by iteration, {} if there is no such file.

    Where a resumed run repeats iterations, the later value counts.
    """
    if not path.is_file():
        return {}
    found: dict[str, Points] = {}
    for line in read_metrics(path):
        for name, value in line.items():
            if name != "iteration" and "iteration" in line and math.isfinite(value):
                found.setdefault(name, {})[int(line["iteration"])] = float(value)
    return {name: dict(sorted(points.items())) for name, points in found.items()}


def last_iteration(series: Series) -> int | None:
    """The last iteration that anything was logged at."""
    return max((iteration for points in series.values() for iteration in points), default=None)


def distillation_losses(series: Series) -> list[str]:
    """Names of the losses that methods of distillation add, without "loss_": those that have a weight."""
    stems = [name[: -len("/weight")] for name in series if name.endswith("/weight")]
    return [stem for stem in stems if f"loss_{stem}" in series]


def task_losses(series: Series) -> list[str]:
    """Names of the losses that the detector has by itself."""
    distilled = {f"loss_{stem}" for stem in distillation_losses(series)}
    return sorted(name for name in series if name.startswith("loss_") and name not in distilled)


REMEDY = "Give the OUTPUT_DIR of a run of tools/train_net.py."


class Run(NamedTuple):
    """The files that a training run has left so far."""

    name: str
    folder: Path
    cfg: CfgNode
    checkpoint: Path | None  # None where none is written yet
    metrics: Series

    @property
    def methods(self) -> list[str]:
        """Its methods of distillation; [] where the student is trained alone."""
        return list(self.cfg.DISTILL.METHODS) if uses_teacher(self.cfg) else []


def open_runs(
    folders: Sequence[tuple[str, Path]], checkpoint: str | None, functions: Sequence[str] = ()
) -> list[Run]:
    """Read the configs and metrics of runs.

    Args:
        folders: (flag, OUTPUT_DIR) each; the first is the run that the report is of.
        checkpoint: the file of the first run to look at; None: its last one, as for all the others.
        functions: functions that add the keys of other projects, as `load_config` takes them.

    Raises:
        ConfigError: one of them is no run, or is given twice, or has no such checkpoint.
    """
    seen: set[Path] = set()
    for key, folder in folders:
        if not folder.is_dir():
            raise ConfigError(key, str(folder), "there is no such folder", REMEDY)
        if folder.resolve() in seen:
            raise ConfigError(key, str(folder), "this run is given twice", "Name every run once.")
        seen.add(folder.resolve())
    names = distinct_names([folder.resolve() for _, folder in folders])
    runs = []
    for index, (name, (key, folder)) in enumerate(zip(names, folders)):
        if not (folder / "config.yaml").is_file():
            raise ConfigError(key, str(folder), "holds no config.yaml, which every run writes", REMEDY)
        # On the CPU, where a few images take seconds: a GPU may be busy with the training itself.
        file = str(folder / "config.yaml")
        cfg = load_config(file, device="cpu", key=key, trusted=False, functions=functions)
        path = find_checkpoint(folder, None if index else checkpoint)
        metrics = read_series(folder / "metrics.json")
        if path is None and not metrics:
            problem = "has neither a checkpoint nor metrics yet"
            raise ConfigError(key, str(folder), problem, "Wait until the run has logged something.")
        runs.append(Run(name, folder, cfg, path, metrics))
    return runs


def find_checkpoint(folder: Path, name: str | None) -> Path | None:
    """The checkpoint of that name in a run's folder, or its last one, None where it has none.

    Raises:
        ConfigError: there is none of the name.
    """
    if name is not None:
        if not (folder / name).is_file():
            there = sorted(path.name for path in folder.glob("*.pth"))
            remedy = f"Choose among {there}." if there else "Leave it out: the run has written none yet."
            raise ConfigError("--checkpoint", name, f"there is no such file in {folder}", remedy)
        return folder / name
    last = folder / "last_checkpoint"
    if last.is_file():
        path = folder / last.read_text().strip()
        if path.is_file():
            return path
    return folder / "model_final.pth" if (folder / "model_final.pth").is_file() else None


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """The last parts of different paths, as many as tell them apart."""
    names = []
    for folder in folders:
        others = [other.parts for other in folders if other != folder]
        count = 1
        while any(other[-count:] == folder.parts[-count:] for other in others):
            count += 1
        names.append("/".join(folder.parts[-count:]))
    return names


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
