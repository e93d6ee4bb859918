"""One run, from the command line to the last evaluation."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from torch import nn

from .checkpoint import ReportingCheckpointer, checkpoint_hooks
from .config import load_config, student_config
from .datasets import check_datasets, register_datasets
from .errors import ConfigError
from .exact import check_sampler, resolve_seed
from .launch import check_launch, launch, world_size
from .rematch import RematchHook
from .rng import isolated_rng
from .teacher import TeacherSpec
from .trainer import Trainer, check_solver, is_distiller


def argument_parser(epilog: str) -> argparse.ArgumentParser:
    """Detectron2's arguments, and `--eval-teacher`."""
    parser = default_argument_parser(epilog)
    parser.add_argument(
        "--eval-teacher", action="store_true", help="evaluate the teacher alone on DATASETS.TEST"
    )
    parser.set_defaults(num_gpus=min(torch.cuda.device_count(), 1))
    return parser


def main(args: Any) -> None:
    """Check what the arguments ask for, then do it in every process.

    Bad input ends this process with one line and exit code 2, before anything is written.
    """
    try:
        check(args)
        launch(run, args)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)


def read_config(args: Any) -> CfgNode:
    """The run's config, its data sets registered."""
    cfg = load_config(args.config_file, args.opts, device="" if args.num_gpus else "cpu")
    register_datasets(cfg)
    return cfg


def check(args: Any) -> None:
    """Whatever can be found out before the run begins.

    Raises:
        ConfigError: what would stop it.
    """
    check_launch(args)
    cfg = read_config(args)
    training = not (args.eval_only or args.eval_teacher)
    predicting = TeacherSpec.from_config(cfg).config() if args.eval_teacher else cfg
    check_datasets(cfg, training=training, model=predicting)
    check_solver(cfg, world_size(args))
    check_output(cfg)
    if training and cfg.DISTILL.EXACT_RESUME:
        check_sampler(cfg)
    check_models(cfg, args)


def check_output(cfg: CfgNode) -> None:
    """Refuse, with a ConfigError, an OUTPUT_DIR that is a file."""
    if os.path.isfile(cfg.OUTPUT_DIR):
        raise ConfigError("OUTPUT_DIR", cfg.OUTPUT_DIR, "is a file", "Name a folder, new or of this run.")


def run(args: Any) -> None:
    """One process of a run."""
    cfg = read_config(args)
    if cfg.DISTILL.EXACT_RESUME and not (args.eval_only or args.eval_teacher):
        resolve_seed(cfg, resume=args.resume)
    cfg.freeze()
    default_setup(cfg, args)
    if args.eval_teacher:
        evaluate_teacher(cfg)
    elif args.eval_only:
        evaluate_student(cfg, resume=args.resume)
    else:
        save_student_config(cfg)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()


def check_models(cfg: CfgNode, args: Any) -> None:
    """Build and load once, on the CPU, what the run will need, and throw it away.

    Raises:
        ConfigError: whatever about the networks would stop the run.
    """
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    logging.disable(logging.WARNING)  # the real loading, once log.txt is there, says it again
    try:
        with isolated_rng():
            if args.eval_teacher:
                TeacherSpec.from_config(cfg).load(torch.device("cpu"))
            elif args.eval_only:
                load_student(cfg, resume=args.resume)
            else:
                model: Any = Trainer.build_model(cfg)
                hooks = checkpoint_hooks(cfg, resume=args.resume)
                ReportingCheckpointer(
                    model, cfg.OUTPUT_DIR, trusted=cfg.DISTILL.UNSAFE_LOADING
                ).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
                if is_distiller(cfg):
                    RematchHook(cfg)
                    if RematchHook.__name__ in hooks:
                        model.load_distill_state(hooks[RematchHook.__name__])
                    model.prepare()
                if hooks and (RematchHook.__name__ in hooks) != is_distiller(cfg):
                    raise ConfigError(
                        "DISTILL.ENABLED",
                        cfg.DISTILL.ENABLED,
                        "the checkpoint to resume is of a run that was the other way round",
                        "Resume as it was, or start in another OUTPUT_DIR with MODEL.WEIGHTS from this one.",
                    )
    finally:
        logging.disable(logging.NOTSET)


def save_student_config(cfg: CfgNode) -> None:
    """Write `student_config.yaml`: the student alone, in stock keys."""
    if comm.is_main_process():
        path = os.path.join(cfg.OUTPUT_DIR, "student_config.yaml")
        with PathManager.open(path, "w") as f:
            f.write(student_config(cfg).dump())


def load_student(cfg: CfgNode, *, resume: bool) -> nn.Module:
    """The model with MODEL.WEIGHTS, or with `resume` those of the last checkpoint.

    Raises:
        ConfigError: the file does not hold all of the student's weights.
    """
    model = Trainer.build_model(cfg)
    checkpointer = ReportingCheckpointer(model, cfg.OUTPUT_DIR, trusted=cfg.DISTILL.UNSAFE_LOADING)
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    report = checkpointer.report
    if report is None or report.missing:
        raise ConfigError(
            "MODEL.WEIGHTS",
            cfg.MODEL.WEIGHTS,
            f"does not hold a trained student: {report or 'no file'}",
            "Give a checkpoint such as OUTPUT_DIR/model_final.pth, or --resume for the run's last.",
        )
    return model


def evaluate_student(cfg: CfgNode, *, resume: bool) -> None:
    """Evaluate MODEL.WEIGHTS, or with `resume` the last checkpoint, on DATASETS.TEST."""
    results = Trainer.test(cfg, load_student(cfg, resume=resume))
    if comm.is_main_process():
        verify_results(cfg, results)


def evaluate_teacher(cfg: CfgNode) -> None:
    """Evaluate the teacher alone, with its own input settings, on the student's DATASETS.TEST."""
    spec = TeacherSpec.from_config(cfg)
    teacher_cfg = spec.config()
    teacher_cfg.DATASETS = cfg.DATASETS.clone()
    teacher_cfg.DATALOADER = cfg.DATALOADER.clone()
    teacher_cfg.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "teacher")
    Trainer.test(teacher_cfg, spec.load(torch.device(cfg.MODEL.DEVICE)).model)
