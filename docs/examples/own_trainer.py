#!/usr/bin/env python
"""Matching Guided Distillation (MGD) in a `DefaultTrainer` of your own.

Five numbered lines and an import are of mgd_det; the rest is what a Detectron2 script has anyway. The config
file is the student's, in stock keys; the teacher is named behind it, like any other key:

    docs/examples/own_trainer.py --config-file my_retinanet_r18.yaml \\
        DISTILL.TEACHER.CONFIG_FILE COCO-Detection/retinanet_R_50_FPN_1x.yaml
"""

from __future__ import annotations

import os
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup
from detectron2.evaluation import COCOEvaluator

from mgd_det import RematchHook, add_mgd_config, register_datasets


class MyTrainer(DefaultTrainer):
    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> COCOEvaluator:
        return COCOEvaluator(
            dataset_name, output_dir=output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        )


def setup(args: Any) -> CfgNode:
    cfg = get_cfg()
    add_mgd_config(cfg)  # 1: the keys of DISTILL
    cfg.merge_from_file(args.config_file)
    cfg.DISTILL.STUDENT_ARCHITECTURE = cfg.MODEL.META_ARCHITECTURE  # 2: what was there ..
    cfg.MODEL.META_ARCHITECTURE = "DistilledDetector"  # 3: .. and what builds it, with a teacher beside it
    cfg.merge_from_list(args.opts)
    register_datasets(cfg)  # 4: only for what DATASETS.REGISTER lists
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def main(args: Any) -> None:
    cfg = setup(args)
    trainer = MyTrainer(cfg)
    trainer.register_hooks([RematchHook(cfg)])  # 5: before resume_or_load, so that it resumes, too
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    main(default_argument_parser().parse_args())
