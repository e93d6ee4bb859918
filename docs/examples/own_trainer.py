#!/usr/bin/env python
"""Matching Guided Distillation (MGD) in a `DefaultTrainer` of your own.

Four numbered lines and an import are of mgd_det; a Detectron2 script has the rest anyway. The config file
is the student's, in stock keys. The command line names the teacher, like any other key:

    python docs/examples/own_trainer.py --config-file my_retinanet_r18.yaml \\
        DISTILL.TEACHER.CONFIG_FILE COCO-Detection/retinanet_R_50_FPN_1x.yaml
"""

from __future__ import annotations

import os
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup
from detectron2.evaluation import COCOEvaluator
from torch import nn

from mgd_det import RematchHook, add_mgd_config, register_datasets, wrap


class MyTrainer(DefaultTrainer):
    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        return wrap(super().build_model(cfg), cfg)  # 1: put a teacher beside the detector

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        return COCOEvaluator(
            dataset_name, output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        )


def setup(args: Any) -> CfgNode:
    cfg = get_cfg()
    add_mgd_config(cfg)  # 2: add the keys of DISTILL
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    register_datasets(cfg)  # 3: only needed for DATASETS.REGISTER
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: Any) -> None:
    cfg = setup(args)
    trainer = MyTrainer(cfg)
    trainer.register_hooks([RematchHook(cfg)])  # 4: before resume_or_load, to resume its state
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    main(default_argument_parser().parse_args())
