"""A project of somebody else: keys of its own, a network, and a mapper that the architecture chooses."""

from __future__ import annotations

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.engine import DefaultTrainer, SimpleTrainer, hooks
from detectron2.evaluation import COCOEvaluator
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet, build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from torch import nn

import mgd_det

FUNCTION = "helpers.projects:add_project_config"


def add_project_config(cfg: CfgNode) -> None:
    cfg.MODEL.PROJECT = CfgNode()
    cfg.MODEL.PROJECT.EXTRA = 3
    cfg.MODEL.PROJECT.NAME = "default"
    cfg.SOLVER.OPTIMIZER = "ADAMW"


def add_nothing(cfg: CfgNode) -> None:
    raise RuntimeError("a project that cannot be used")


@META_ARCH_REGISTRY.register()
class ProjectNet(RetinaNet):
    """A RetinaNet with a layer whose width is a key of the project, for images of 16 bits."""

    def __init__(self, cfg) -> None:
        super().__init__(**RetinaNet.from_config(cfg))
        self.extra = nn.Linear(cfg.MODEL.PROJECT.EXTRA, 1).requires_grad_(False)

    def preprocess_image(self, batched_inputs):
        return super().preprocess_image([{**x, "image": x["image"] / 256} for x in batched_inputs])


class SixteenBitMapper(DatasetMapper):
    """Gives images from 0 to 65280 in place of 255."""

    def __call__(self, dataset_dict):
        dataset_dict = super().__call__(dataset_dict)
        dataset_dict["image"] = dataset_dict["image"].float() * 256
        return dataset_dict


class ProjectTrainer(DefaultTrainer):
    """A stock trainer that chooses the mapper by the architecture, and wraps the student by one line."""

    @classmethod
    def build_model(cls, cfg):
        return mgd_det.wrap(super().build_model(cfg), cfg)

    @classmethod
    def build_train_loader(cls, cfg):
        mapper = SixteenBitMapper if cfg.MODEL.META_ARCHITECTURE == "ProjectNet" else DatasetMapper
        return build_detection_train_loader(cfg, mapper=mapper(cfg, True))

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


class WithoutHookStates(ProjectTrainer):
    """Its checkpoints hold the iteration and nothing of its hooks."""

    def state_dict(self):
        return {"iteration": self.iter}


class OldTrainer(SimpleTrainer):
    """A trainer as in the first versions of Detectron2, whose checkpointer does not know it."""

    def __init__(self, cfg) -> None:
        model = mgd_det.wrap(build_model(cfg), cfg)
        optimizer = build_optimizer(cfg, model)
        super().__init__(model, build_detection_train_loader(cfg), optimizer)
        scheduler = build_lr_scheduler(cfg, optimizer)
        self.cfg = cfg
        self.checkpointer = DetectionCheckpointer(
            model, cfg.OUTPUT_DIR, optimizer=optimizer, scheduler=scheduler
        )
        period = cfg.SOLVER.CHECKPOINT_PERIOD
        self.register_hooks(
            [
                hooks.LRScheduler(optimizer, scheduler),
                hooks.PeriodicCheckpointer(self.checkpointer, period, cfg.SOLVER.MAX_ITER),
            ]
        )

    def resume_or_load(self, resume=True):
        checkpoint = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = checkpoint.get("iteration", -1) + 1

    def train(self):
        super().train(self.start_iter, self.cfg.SOLVER.MAX_ITER)
