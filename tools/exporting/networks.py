"""The networks of a finished run, and an image to try them on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts, transforms
from detectron2.data.detection_utils import read_image
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor, nn

from mgd_det.config import load_config, uses_teacher
from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.errors import ConfigError
from mgd_det.modeling.teacher import TeacherSpec
from mgd_det.modeling.wrapping import student_of as detector_inside
from mgd_det.run.evaluation import load_student


class Network(NamedTuple):
    """A detector in eval mode on the CPU."""

    name: str
    model: Any
    input_format: str  # channel order that it takes

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def megabytes(self) -> float:
        """Size of its weights, in megabytes of 10**6 bytes."""
        return sum(t.numel() * t.element_size() for t in self.model.state_dict().values()) / 1e6


def read_run(run: Path, functions: Sequence[str] = ()) -> CfgNode:
    """The config that a run left, for the CPU.

    Args:
        run: its OUTPUT_DIR.
        functions: functions that add the keys of other projects, as `load_config` takes them.

    Raises:
        ConfigError: the folder is not one of a run.
    """
    for name in ("config.yaml", "model_final.pth"):
        if not (run / name).is_file():
            remedy = "Name the OUTPUT_DIR of a finished run of tools/train_net.py."
            raise ConfigError("--run", str(run), f"there is no {name} in it", remedy)
    path = str(run / "config.yaml")
    cfg = load_config(path, device="cpu", key="--run", trusted=False, functions=functions)
    cfg.MODEL.WEIGHTS = str(run / "model_final.pth")
    return cfg


def student_of(cfg: CfgNode) -> Network:
    """The stock detector that the run trained.

    Raises:
        ConfigError: its weights do not fit, or it is of a kind that is not exported.
    """
    student = detector_inside(load_student(cfg, resume=False))
    # Panoptic FPN derives from GeneralizedRCNN, and returns more than detections.
    if type(student) is not GeneralizedRCNN and not isinstance(student, DenseDetector):
        problem = f"its student is a {type(student).__name__}"
        raise ConfigError("--run", cfg.OUTPUT_DIR, problem, "Export RetinaNet, FCOS, Faster or Mask R-CNN.")
    return Network("student", _frozen(student), cfg.INPUT.FORMAT)


def teacher_of(cfg: CfgNode) -> Network | None:
    """The detector that the student learnt from, None where there was none.

    Raises:
        ConfigError: it is not where it was.
    """
    if not uses_teacher(cfg):
        return None
    teacher = TeacherSpec.from_config(cfg).load(torch.device("cpu"))
    return Network("teacher", _frozen(teacher.model), teacher.input_format)


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def image_path(cfg: CfgNode, given: str) -> str:
    """The image that was asked for, or the first that the run was evaluated on.

    Raises:
        ConfigError: none was, and the run's test data is not here.
    """
    if given:
        return given
    try:
        register_datasets(cfg)
        check_datasets(cfg, training=False)
        return get_detection_dataset_dicts(cfg.DATASETS.TEST[0], filter_empty=False)[0]["file_name"]
    except ConfigError as error:
        problem = f"none is named, and the run's own cannot be had ({error})"
        raise ConfigError("--image", given, problem, "Name one that shows objects.") from error


def load_image(cfg: CfgNode, path: str) -> Tensor:
    """(3, H, W) float32, as the student takes it: its channel order, at its test size.

    Raises:
        ConfigError: there is no image of that name.
    """
    try:
        pixels = read_image(path, format=cfg.INPUT.FORMAT)
    except OSError as error:
        problem = f"cannot be read ({type(error).__name__})"
        raise ConfigError("--image", path, problem, "Name a JPEG or PNG file.") from error
    resize = transforms.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    pixels = resize.get_transform(pixels).apply_image(pixels)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32))
