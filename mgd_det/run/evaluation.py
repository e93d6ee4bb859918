"""Evaluations of the student, of the teacher, and of the teacher against a required AP."""

from __future__ import annotations

import json
import logging
import math
import os
from argparse import Namespace

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, verify_results
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.config import student_config
from mgd_det.config.lazy import is_lazy
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError
from mgd_det.modeling.teacher import Teacher, TeacherSpec
from mgd_det.rng import isolated_rng

from .output import TEACHER_FOLDER, claimed
from .setup import building, set_up

logger = logging.getLogger("detectron2." + __name__)


def load_student(cfg: CfgNode, *, resume: bool) -> nn.Module:
    """Returns the student with MODEL.WEIGHTS, or with `resume` the weights of the last checkpoint.

    Raises:
        ConfigError: the file does not hold all of the student's weights.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DISTILL.ENABLED = False  # the student alone, which needs no teacher
    model = Trainer.build_model(cfg)
    checkpointer = ReportingCheckpointer(model, cfg.OUTPUT_DIR, trusted=cfg.DISTILL.UNSAFE_LOADING)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    report = checkpointer.report
    if report is None or report.missing:
        raise ConfigError(
            "MODEL.WEIGHTS",
            cfg.MODEL.WEIGHTS,
            f"does not hold a trained student: {report or 'no file'}",
            "Give a checkpoint such as OUTPUT_DIR/model_final.pth, or --resume for the run's last.",
        )
    return model


def evaluate_student(cfg: CfgNode, args: Namespace) -> None:
    """Evaluate MODEL.WEIGHTS, or with `--resume` the last checkpoint, on DATASETS.TEST."""
    cfg.freeze()
    with building(cfg) as records:
        model = load_student(cfg, resume=args.resume)
    with claimed(cfg, args):
        set_up(cfg, args, records)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
    if comm.is_main_process():
        verify_results(cfg, results)


def teacher_test_config(cfg: CfgNode) -> CfgNode:
    """Returns the teacher's own config, to be tested on the student's DATASETS.TEST."""
    spec = TeacherSpec.from_config(cfg)
    if is_lazy(spec.config_file):  # without Detectron2's test settings, so that the student's are taken
        teacher = student_config(cfg)
        teacher.MODEL.META_ARCHITECTURE = spec.config_file
        teacher.INPUT.FORMAT = spec.input_format()
    else:
        teacher = spec.config()
    teacher.DATASETS = cfg.DATASETS.clone()
    teacher.DATALOADER = cfg.DATALOADER.clone()
    teacher.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, TEACHER_FOLDER)
    return teacher


def evaluate_teacher(cfg: CfgNode, args: Namespace) -> None:
    """Evaluate the teacher alone, with its own input settings, on the student's DATASETS.TEST.

    The folder `teacher` of OUTPUT_DIR then has the files of an evaluated run, from which the summary of a run
    that learns from this teacher takes its AP.
    """
    cfg.freeze()
    with building(cfg) as records:
        teacher_cfg = teacher_test_config(cfg)
        teacher = TeacherSpec.from_config(cfg).load(torch.device(cfg.MODEL.DEVICE))
    with claimed(cfg, args):
        set_up(cfg, args, records)
        results = Trainer.test(teacher_cfg, teacher.model)
        if comm.is_main_process():
            PathManager.mkdirs(teacher_cfg.OUTPUT_DIR)
            with PathManager.open(os.path.join(teacher_cfg.OUTPUT_DIR, "config.yaml"), "w") as f:
                f.write(teacher_cfg.dump())
            with PathManager.open(os.path.join(teacher_cfg.OUTPUT_DIR, "metrics.json"), "w") as f:
                f.write(json.dumps(flatten_results_dict(results)) + "\n")


def require_teacher_ap(cfg: CfgNode, teacher: Teacher | None) -> None:
    """Evaluate the teacher on a few images, if `DISTILL.TEACHER.MIN_AP` asks for it.

    Args:
        teacher: the teacher if it has been loaded, None if it is to be loaded here.

    Raises:
        ConfigError: it does not reach that AP; in every process.
    """
    node = cfg.DISTILL.TEACHER
    if not node.MIN_AP:
        return
    teacher_cfg = teacher_test_config(cfg)
    teacher = teacher or TeacherSpec.from_config(cfg).load(torch.device(cfg.MODEL.DEVICE))
    for name in cfg.DATASETS.TEST:
        images = get_detection_dataset_dicts(name, filter_empty=False)[: node.CHECK_IMAGES]
        with isolated_rng():
            loader = build_detection_test_loader(
                images,
                mapper=DatasetMapper(teacher_cfg, False),
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
            folder = os.path.join(cfg.OUTPUT_DIR, "inference")
            evaluator = _EvaluatorOfSome(name, [image["image_id"] for image in images], folder)
            results = inference_on_dataset(teacher.model, loader, evaluator)
        # Known to the first process; all have to stop, or none.
        reached = comm.all_gather((results or {}).get("bbox", {}).get("AP", 0.0))[0]
        reached = 0.0 if math.isnan(reached) else reached  # nothing was detected
        logger.info("the teacher reaches AP %.2f on %d images of %s", reached, len(images), name)
        if reached < node.MIN_AP:
            raise ConfigError(
                "DISTILL.TEACHER.MIN_AP",
                node.MIN_AP,
                f"the teacher reaches AP {reached:.2f} on {len(images)} images of {name!r}",
                "Look at DISTILL.TEACHER.WEIGHTS and at the teacher's INPUT.FORMAT, MODEL.PIXEL_MEAN and "
                "MODEL.PIXEL_STD; or ask for less, or for it on more CHECK_IMAGES.",
            )


class _EvaluatorOfSome(COCOEvaluator):
    """Computes box AP over some of a set's images."""

    def __init__(self, dataset_name: str, image_ids: list[int], folder: str) -> None:
        # A set that has no json is written as one.
        has_json = "json_file" in MetadataCatalog.get(dataset_name).as_dict()
        super().__init__(
            dataset_name, tasks=("bbox",), distributed=True, output_dir=None if has_json else folder
        )
        self.image_ids = image_ids

    def evaluate(self, img_ids: list[int] | None = None) -> dict[str, dict[str, float]]:
        return super().evaluate(img_ids=self.image_ids)
