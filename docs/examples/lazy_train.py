#!/usr/bin/env python
"""Matching Guided Distillation (MGD) with LazyConfigs, in the manner of Detectron2's lazyconfig_train_net.py.

    docs/examples/lazy_train.py --config-file docs/examples/lazy_retinanet_r18.py [--resume] [key=value ...]

What a LazyConfig script does not have already is the hook, and the images that it solves the matching from.
Writes, beside the checkpoints, student.yaml: the LazyConfig of the student alone, for stock Detectron2.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from typing import Any, Callable

from detectron2.config import LazyConfig, instantiate
from detectron2.data import build_detection_test_loader
from detectron2.engine import (
    AMPTrainer,
    SimpleTrainer,
    default_argument_parser,
    default_setup,
    default_writers,
    hooks,
    launch,
)
from detectron2.engine.defaults import create_ddp_model
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import OmegaConf

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer


def matching_images(cfg: Any) -> Callable[[int], Iterable[Any]]:
    """Iteration -> images of the training set for the matching before it, without augmentation."""
    images = instantiate(cfg.dataloader.train.dataset)
    number = min(cfg.train.matching_images, len(images))

    def batches(iteration: int) -> Iterable[Any]:
        drawn = random.Random(iteration).sample(images, number)  # the same in all processes ..
        mapper = instantiate(cfg.dataloader.test.mapper)
        return build_detection_test_loader(drawn, mapper=mapper)  # .. each of which gets its share

    return batches


def test(cfg: Any, model: Any) -> Any:
    loader, evaluator = instantiate(cfg.dataloader.test), instantiate(cfg.dataloader.evaluator)
    results = inference_on_dataset(model, loader, evaluator)
    print_csv_format(results)
    return results


def train(args: Any, cfg: Any) -> None:
    model = instantiate(cfg.model)  # a DistilledDetector
    model.to(cfg.train.device)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    model = create_ddp_model(model, **cfg.train.ddp)
    loader = instantiate(cfg.dataloader.train)
    trainer = (AMPTrainer if cfg.train.amp.enabled else SimpleTrainer)(model, loader, optimizer)
    # Detectron2's, which also reads torchvision's ImageNet files.
    checkpointer = ReportingCheckpointer(model, cfg.train.output_dir, trainer=trainer)
    cfg.hook.images = matching_images(cfg)
    trainer.register_hooks(
        [
            instantiate(cfg.hook),
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=instantiate(cfg.lr_multiplier)),
            hooks.EvalHook(cfg.train.eval_period, lambda: test(cfg, model)),
        ]
    )
    if comm.is_main_process():
        writers = default_writers(cfg.train.output_dir, cfg.train.max_iter)
        trainer.register_hooks(
            [
                hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer),
                hooks.PeriodicWriter(writers, period=cfg.train.log_period),
            ]
        )
        student = OmegaConf.create({"model": cfg.model.student}, flags={"allow_objects": True})
        LazyConfig.save(student, os.path.join(cfg.train.output_dir, "student.yaml"))

    checkpointer.resume_or_load(cfg.train.init_checkpoint, resume=args.resume)
    resuming = args.resume and checkpointer.has_checkpoint()
    trainer.train(trainer.iter + 1 if resuming else 0, cfg.train.max_iter)


def main(args: Any) -> None:
    cfg = LazyConfig.load(args.config_file)
    cfg = LazyConfig.apply_overrides(cfg, args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        model = instantiate(cfg.model.student).to(cfg.train.device)  # stock; the checkpoints are its
        ReportingCheckpointer(model).load(cfg.train.init_checkpoint)
        test(cfg, model)
    else:
        train(args, cfg)


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(
        main,
        arguments.num_gpus,
        num_machines=arguments.num_machines,
        machine_rank=arguments.machine_rank,
        dist_url=arguments.dist_url,
        args=(arguments,),
    )
