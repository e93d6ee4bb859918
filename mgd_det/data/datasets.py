"""Registering COCO-format data sets from the config, and checking data before a run."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import register_coco_instances
from detectron2.utils.file_io import PathManager

from mgd_det.config import DISTILLER
from mgd_det.config.lazy import lazy_student, load_lazy, num_classes
from mgd_det.config.values import value_of
from mgd_det.errors import ConfigError

from .coco_checks import REGISTER_KEY, check_coco
from .unlabeled import KEY as UNLABELED_KEY
from .unlabeled import check_unlabeled, register_folder

LAZY_CLASS_KEY = "DISTILL.STUDENT_OPTS model.num_classes"
_CLASS_COUNT_KEYS = {
    "RetinaNet": "MODEL.RETINANET.NUM_CLASSES",
    "GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES",
    "PanopticFPN": "MODEL.ROI_HEADS.NUM_CLASSES",
}


def register_datasets(cfg: CfgNode) -> None:
    """Register `DATASETS.REGISTER` in Detectron2's catalogs; once registered, again is fine.

    Raises:
        ConfigError: an entry is not [name, annotation.json, image_root], or its name is taken.
    """
    for entry in cfg.DATASETS.REGISTER:
        if not (isinstance(entry, (list, tuple)) and [type(x) for x in entry] == [str] * 3):
            raise ConfigError(
                REGISTER_KEY,
                entry,
                'not of the form [name, annotation.json, image_root], or [name, "", image_root]',
                'Write for example DATASETS.REGISTER \'[["mine", "mine/train.json", "mine/images"]]\'.',
            )
        name, annotations, root = entry
        if name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            if (metadata.get("json_file"), metadata.get("image_root")) != (annotations, root):
                raise ConfigError(
                    REGISTER_KEY,
                    entry,
                    f"the name {name!r} is already registered with other files",
                    "Choose another name, here and in DATASETS.TRAIN or DATASETS.TEST.",
                )
            continue
        if annotations:
            register_coco_instances(name, {}, annotations, root)
        else:
            register_folder(name, root)


def check_datasets(
    cfg: CfgNode, *, training: bool, student: bool = True, teacher: CfgNode | None = None
) -> None:
    """Check the data sets that a run will use, without decoding an image.

    Sets with a json in COCO format go through :func:`.coco_checks.check_coco`. Of others only the existence
    of the files is checked.

    Args:
        cfg: a config whose `DATASETS.REGISTER` has been registered.
        training: whether DATASETS.TRAIN is used, beside DATASETS.TEST.
        student: whether the student is trained or evaluated.
        teacher: the teacher's config if the teacher is evaluated on DATASETS.TEST.

    Raises:
        ConfigError: a set is not registered, lacks its files, is not COCO format, has images of another
            size than it says, no boxes to train on, more classes than the model, or others than the
            first set.
    """
    if training and not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN", (), "no training set is named", "Name at least one.")
    if (teacher or not training) and not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST", (), "there is nothing to evaluate on", "Name at least one set.")
    uses = [("DATASETS.TRAIN", name) for name in (cfg.DATASETS.TRAIN if training else ())]
    uses += [("DATASETS.TEST", name) for name in cfg.DATASETS.TEST]
    for name in cfg.DATASETS.UNLABELED if training else ():
        _check_registered(cfg, UNLABELED_KEY, name)
        check_unlabeled(name)
    first: tuple[str, Sequence[str]] = ("", ())
    for key, name in uses:
        classes = _check_set(cfg, key, name)
        if student:
            _check_class_count(cfg, key, name, len(classes), of_teacher=False)
        if teacher and key == "DATASETS.TEST":
            _check_class_count(teacher, key, name, len(classes), of_teacher=True)
        first = first if first[1] else (name, classes)
        _check_same_classes(key, name, classes, *first)


def _check_set(cfg: CfgNode, key: str, name: str) -> list[str]:
    """Check one set; returns its classes, none if they are not known."""
    metadata, registered = _check_registered(cfg, key, name)
    if metadata.get("json_file") == "":
        problem = f"{REGISTER_KEY} gives this set no annotations"
        raise ConfigError(
            key, name, problem, f"Name its annotation file there, or the set in {UNLABELED_KEY}."
        )
    if metadata.get("json_file") and metadata.get("evaluator_type", "coco").startswith("coco"):
        # The annotations of some sets are kept back from those who only write their detections.
        return check_coco(cfg, key, name, metadata, annotated=registered or key == "DATASETS.TRAIN")
    return list(metadata.get("thing_classes") or ())


def _check_registered(cfg: CfgNode, key: str, name: str) -> tuple[Metadata, bool]:
    """Check that a set is registered and its files exist; returns if it is by DATASETS.REGISTER, too."""
    if name not in DatasetCatalog:
        problem = "no data set of that name is registered"
        remedy = f"List it in {REGISTER_KEY}, or register it with Detectron2 before."
        raise ConfigError(key, name, problem, remedy)
    metadata = MetadataCatalog.get(name)
    registered = any(name == entry[0] for entry in cfg.DATASETS.REGISTER)
    _check_files(key, name, metadata, registered=registered)
    return metadata, registered


def _check_files(key: str, name: str, metadata: Metadata, *, registered: bool) -> None:
    remedy = (
        f"Correct the path in {REGISTER_KEY}; relative ones start at the working directory, {os.getcwd()}."
        if registered
        else "Correct the path (relative ones start at the working directory), or set the environment "
        "variable DETECTRON2_DATASETS to where Detectron2's built-in sets are: "
        "https://detectron2.readthedocs.io/en/latest/tutorials/builtin_datasets.html says where to get them."
    )
    for kind, attribute in (("annotation file", "json_file"), ("image folder", "image_root")):
        path = metadata.get(attribute)
        if path and not PathManager.exists(path):
            raise ConfigError(
                key,
                name,
                f"its {kind} {path} does not exist",
                remedy,
            )


def _check_class_count(cfg: CfgNode, key: str, name: str, in_data: int, *, of_teacher: bool) -> None:
    class_key, count = _class_count(cfg)
    # COCO evaluation also fails on predictions of classes that the data has not.
    if count is not None and (in_data > count or (key == "DATASETS.TEST" and 0 < in_data < count)):
        problem = f"the data set {name!r} of {key} has {in_data} classes"
        remedy = f"Set {class_key} {in_data}, or use data with the model's classes."
        if of_teacher:
            remedy = (
                "A teacher of other classes can be imitated, but not evaluated on this data: leave "
                "--eval-teacher and DISTILL.TEACHER.MIN_AP out."
            )
        elif class_key == LAZY_CLASS_KEY:
            remedy = f"Set DISTILL.STUDENT_OPTS '[\"model.num_classes={in_data}\"]', or use other data."
        raise ConfigError(class_key, count, problem, remedy)


def _check_same_classes(
    key: str, name: str, classes: Sequence[str], first: str, first_classes: Sequence[str]
) -> None:
    for number, (here, there) in enumerate(zip(classes, first_classes), start=1):
        if here != there:
            raise ConfigError(
                key,
                name,
                f"its class {number}, by the order of ids, is {here!r}, and that of {first!r} is {there!r}",
                "Give all sets of a run the same categories with the same ids.",
            )


def _class_count(cfg: CfgNode) -> tuple[str, int | None]:
    """Returns the key of the model's number of classes, and the number, None if that is not known."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture == DISTILLER:
        source = lazy_student(cfg)
        if source is not None:
            lazy = load_lazy(*source, "DISTILL.STUDENT_ARCHITECTURE", "DISTILL.STUDENT_OPTS")
            return LAZY_CLASS_KEY, num_classes(lazy)
        architecture = cfg.DISTILL.STUDENT_ARCHITECTURE
    class_key = _CLASS_COUNT_KEYS.get(architecture, "")
    return class_key, value_of(cfg, class_key) if class_key else None
