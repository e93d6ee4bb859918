#!/usr/bin/env python
"""Matching Guided Distillation (MGD) in a plain PyTorch loop, without a trainer.

    docs/examples/plain_loop.py --config-file configs/retinanet_r18_mgd.yaml SOLVER.MAX_ITER 1000

Writes the student alone: model_final.pth and student_config.yaml, for stock Detectron2.
"""

from __future__ import annotations

import os

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage

from mgd_det import register_datasets
from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.config import load_config, student_config
from mgd_det.engine.first_batch import watch_next_batch
from mgd_det.engine.matching import MatchingSchedule
from mgd_det.engine.optimizer import build_optimizer
from mgd_det.engine.schedules import WeightSchedule
from mgd_det.modeling.step_plan import StepPlan


def main() -> None:
    args = default_argument_parser().parse_args()
    cfg = load_config(args.config_file, args.opts)
    register_datasets(cfg)

    model = build_model(cfg)  # a DistilledDetector; its teacher is loaded when it is first needed
    ReportingCheckpointer(model).load(
        cfg.MODEL.WEIGHTS
    )  # as Detectron2's; reads torchvision's ImageNet files, too
    model.inherit()  # what DISTILL.INHERIT names, of the teacher
    optimizer = build_optimizer(cfg, model)  # of the student, and of what the methods learn beside it
    scheduler = build_lr_scheduler(cfg, optimizer)
    matching = MatchingSchedule.from_config(cfg)  # DISTILL.MATCHING: solves from images of the training set
    weights = WeightSchedule.from_config(cfg)  # DISTILL.SCHEDULE

    model.train()
    watch_next_batch(model)  # warns of a teacher that cannot teach, and logs what distilling costs
    loader = iter(build_detection_train_loader(cfg))
    with EventStorage() as storage:  # which Detectron2's networks log to
        for step in range(cfg.SOLVER.MAX_ITER):
            plan = StepPlan(loss_factor=weights.factor(step), collect_statistics=matching.collects(step))
            if plan.loss_factor > 0:
                for report in matching.solve_if_due(model, step):
                    print(f"step {step}: {report.name} matched at a mean cost of {report.cost:.3f}")
            model.plan_step(plan)
            losses = model(next(loader))  # the student's and, with names of their own, the distillation's
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            scheduler.step()
            if plan.loss_factor > 0 and plan.collect_statistics:
                matching.absorb(model)
            storage.step()
            if step % 20 == 0:
                print(
                    f"step {step}:", ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
                )

    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    DetectionCheckpointer(model.student, cfg.OUTPUT_DIR).save("model_final")
    with open(os.path.join(cfg.OUTPUT_DIR, "student_config.yaml"), "w") as f:
        f.write(student_config(cfg).dump())


if __name__ == "__main__":
    main()
