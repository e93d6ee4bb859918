"""Evaluators by the kind of a data set, and the check that a run can be evaluated."""

from __future__ import annotations

import importlib.util
import os
from typing import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN, PanopticFPN
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from mgd_det.config import student_config
from mgd_det.errors import ConfigError


def _coco(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    _forget_conversion(name, folder)
    return COCOEvaluator(name, output_dir=folder, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)


def _forget_conversion(name: str, folder: str) -> None:
    """Delete the json that an earlier run has made of a set without one, since it may be of other data."""
    path = os.path.join(folder, f"{name}_coco_format.json")  # as COCOEvaluator calls it
    if MetadataCatalog.get(name).get("json_file"):
        return
    if comm.is_main_process() and PathManager.isfile(path):
        PathManager.rm(path)
    comm.synchronize()


def _sem_seg(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return SemSegEvaluator(name, distributed=True, output_dir=folder)


def _panoptic(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return COCOPanopticEvaluator(name, folder)


def _lvis(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return LVISEvaluator(name, output_dir=folder)


def _pascal_voc(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return PascalVOCDetectionEvaluator(name)


def _cityscapes_instances(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return CityscapesInstanceEvaluator(name)


def _cityscapes_sem_seg(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    return CityscapesSemSegEvaluator(name)


# What Detectron2's own training script evaluates a data set by, according to its `evaluator_type`.
EVALUATORS: dict[str, tuple[Callable[[CfgNode, str, str], DatasetEvaluator], ...]] = {
    "coco": (_coco,),
    "coco_panoptic_seg": (_sem_seg, _coco, _panoptic),
    "sem_seg": (_sem_seg,),
    "lvis": (_lvis,),
    "pascal_voc": (_pascal_voc,),
    "cityscapes_instance": (_cityscapes_instances,),
    "cityscapes_sem_seg": (_cityscapes_sem_seg,),
}
PACKAGES = {  # that evaluators import when they are built or run
    "coco_panoptic_seg": "panopticapi",
    "lvis": "lvis",
    "cityscapes_instance": "cityscapesscripts",
    "cityscapes_sem_seg": "cityscapesscripts",
}
WITH_COCO_BOXES = ("coco", "coco_panoptic_seg")


def evaluator_type(name: str) -> str:
    """Returns the kind of a data set; "coco", whose evaluator reads any set of boxes, if it does not say."""
    kind: str = MetadataCatalog.get(name).get("evaluator_type", "coco")
    return kind


def build_evaluator(cfg: CfgNode, name: str, folder: str) -> DatasetEvaluator:
    """Returns the evaluator of a data set.

    Args:
        cfg: the run's config.
        name: of the set.
        folder: where predictions and results are written to.

    Raises:
        ConfigError: there is none for sets of its kind.
    """
    built = [build(cfg, name, folder) for build in _builders(name)]
    return built[0] if len(built) == 1 else DatasetEvaluators(built)


def _builders(name: str) -> tuple[Callable[[CfgNode, str, str], DatasetEvaluator], ...]:
    kind = evaluator_type(name)
    if kind not in EVALUATORS:
        remedy = (
            f"Those of {', '.join(EVALUATORS)} are evaluated; for others, override build_evaluator in a "
            "subclass of mgd_det.Trainer."
        )
        problem = f"there is no evaluator for its evaluator_type {kind!r}"
        raise ConfigError("DATASETS.TEST", name, problem, remedy)
    return EVALUATORS[kind]


def check_evaluators(cfg: CfgNode) -> None:
    """Check that the sets in DATASETS.TEST, which are registered, can be evaluated.

    Raises:
        ConfigError: there is no evaluator for one, or its package is missing; or it has no boxes for the
            check of the teacher that DISTILL.TEACHER.MIN_AP asks for.
    """
    for name in cfg.DATASETS.TEST:
        _builders(name)
        kind = evaluator_type(name)
        package = PACKAGES.get(kind)
        if package and importlib.util.find_spec(package) is None:
            problem = f"evaluating a set of the type {kind!r} needs the package {package}"
            raise ConfigError("DATASETS.TEST", name, problem, "Install it, or test on another set.")
        if kind not in WITH_COCO_BOXES and cfg.DISTILL.TEACHER.MIN_AP > 0:
            problem = f"the set {name!r} has no boxes in COCO format, on which the teacher's AP is measured"
            remedy = "Set it 0, or test on such a set."
            raise ConfigError("DISTILL.TEACHER.MIN_AP", cfg.DISTILL.TEACHER.MIN_AP, problem, remedy)


def check_augmented_test(cfg: CfgNode) -> None:
    """Check that Detectron2's test-time augmentation works for the student, if TEST.AUG asks for it.

    Raises:
        ConfigError: it is no R-CNN with boxes and masks.
    """
    if not cfg.TEST.AUG.ENABLED:
        return
    architecture = student_config(cfg).MODEL.META_ARCHITECTURE
    built = META_ARCH_REGISTRY.get(architecture) if architecture in META_ARCH_REGISTRY else None
    rcnn = isinstance(built, type) and issubclass(built, GeneralizedRCNN)
    panoptic = isinstance(built, type) and issubclass(built, PanopticFPN)
    if not rcnn or panoptic or cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        problem = (
            "Detectron2's test-time augmentation is for a GeneralizedRCNN that finds boxes and masks with "
            f"proposals of its own, and the student is a {architecture}"
        )
        raise ConfigError("TEST.AUG.ENABLED", True, problem, "Set it False.")
