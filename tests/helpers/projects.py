"""A project of somebody else: keys of its own, an architecture and a mapper that its keys choose."""

from __future__ import annotations

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from torch import nn

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
    """A RetinaNet with a layer whose width is a key of the project."""

    def __init__(self, cfg) -> None:
        super().__init__(**RetinaNet.from_config(cfg))
        self.extra = nn.Linear(cfg.MODEL.PROJECT.EXTRA, 1)
        self.extra.requires_grad_(False)


class SixteenBitMapper(DatasetMapper):
    """Reads 16-bit grey images, which the stock mapper would clip, in place of the pictures."""

    def __call__(self, dataset_dict):
        import copy

        import torch

        dataset_dict = copy.deepcopy(dataset_dict)
        grey = np.load(dataset_dict["npy"]).astype("float32")
        dataset_dict["image"] = torch.from_numpy(grey).expand(3, -1, -1)
        return dataset_dict
