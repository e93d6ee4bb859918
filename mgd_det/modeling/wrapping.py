"""Putting a teacher beside a detector that somebody else has built, and getting that detector back."""

from __future__ import annotations

from detectron2.config import CfgNode
from torch import nn

from mgd_det.distributed import unwrapped

from .detector import DistilledDetector


def wrap(model: nn.Module, cfg: CfgNode) -> DistilledDetector:
    """Returns a detector with the teacher and the methods of `DISTILL` beside it.

    `MODEL.META_ARCHITECTURE` keeps its value, by which projects choose their mapper, loss or evaluator::

        class Trainer(TheirTrainer):
            @classmethod
            def build_model(cls, cfg):
                return mgd_det.wrap(super().build_model(cfg), cfg)

    Args:
        model: the student: any Detectron2 detector. One that is wrapped already is returned as it is.
        cfg: a config with this project's keys.

    Raises:
        ConfigError: the student, the methods and the teacher do not fit each other.
    """
    return model if isinstance(model, DistilledDetector) else DistilledDetector(cfg, student=model)


def student_of(model: nn.Module) -> nn.Module:
    """Returns the stock detector inside a distilled one, for code that looks at the class of a model.

    Args:
        model: a distilled or a stock detector, in DistributedDataParallel or not.
    """
    model = unwrapped(model)
    return model.student if isinstance(model, DistilledDetector) else model
