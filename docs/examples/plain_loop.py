#!/usr/bin/env python
"""Matching Guided Distillation (MGD) in a plain PyTorch loop, without a trainer.

    docs/examples/plain_loop.py --config-file configs/retinanet_r18_mgd.yaml [--resume] SOLVER.MAX_ITER 1000

Writes checkpoints, whose "model" is the stock student, and student_config.yaml, for stock Detectron2.
"""

from __future__ import annotations

from detectron2.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detectron2.data import build_detection_train_loader
from detectron2.engine import default_argument_parser
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage

from mgd_det import register_datasets
from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.config import load_config, save_student_config
from mgd_det.engine.distill_state import DistillState
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
    optimizer = build_optimizer(cfg, model)  # of the student, and of what the methods learn beside it
    scheduler = build_lr_scheduler(cfg, optimizer)
    matching = MatchingSchedule.from_config(cfg)  # DISTILL.MATCHING: solves from images of the training set
    weights = WeightSchedule.from_config(cfg)  # DISTILL.SCHEDULE and DISTILL.TEACHER.EVERY

    learnt = DistillState(model)  # the matching, and what the methods learn beside the student
    checkpointer = DetectionCheckpointer(
        model, cfg.OUTPUT_DIR, optimizer=optimizer, scheduler=scheduler, distill=learnt
    )
    start = 0
    if args.resume and checkpointer.has_checkpoint():
        start = checkpointer.resume_or_load("")["iteration"] + 1
    else:
        # As Detectron2's checkpointer, but it reads torchvision's ImageNet files, too.
        ReportingCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        model.inherit()  # what DISTILL.INHERIT names, of the teacher
    learnt.check_resumed(start)
    periodic = PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER)
    save_student_config(cfg)

    model.train()
    watch_next_batch(model)  # warns of a teacher that cannot teach, and logs what distilling costs
    loader = iter(build_detection_train_loader(cfg))
    with EventStorage(start) as storage:  # which Detectron2's networks log to
        for step in range(start, cfg.SOLVER.MAX_ITER):
            plan = StepPlan(
                loss_factor=weights.factor(step),
                collect_statistics=matching.collects(step),
                skipped=weights.skips(step),
            )
            if not plan.stopped:
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
            periodic.step(step)
            storage.step()
            if step % 20 == 0:
                print(
                    f"step {step}:", ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
                )


if __name__ == "__main__":
    main()
