"""One run, from the command line to the last evaluation."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer, trainer_state
from mgd_det.config import DISTILLER, load_config, student_config, uses_teacher
from mgd_det.config.lazy import lazy_student, load_lazy, save_lazy
from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.detectron2_compat import last_eval_results
from mgd_det.engine.exact_resume import check_sampler, resolve_seed
from mgd_det.engine.optimizer import check_resumed_optimizer
from mgd_det.engine.rematch import RematchHook
from mgd_det.engine.state_keys import MATCHING_STATE
from mgd_det.engine.trainer import Trainer, check_solver
from mgd_det.errors import RESUME_REMEDY, ConfigError
from mgd_det.modeling.teacher import TeacherSpec
from mgd_det.rng import isolated_rng

from .evaluation import (
    check_teacher_settings,
    evaluate_student,
    evaluate_teacher,
    load_student,
    require_teacher_ap,
    teacher_test_config,
)
from .launch import check_launch, launch, world_size
from .suggest_weights import check_suggestion, suggest_weights
from .summary import check_baseline, summary

logger = logging.getLogger("detectron2." + __name__)


def argument_parser(epilog: str) -> argparse.ArgumentParser:
    """Detectron2's arguments, `--eval-teacher` and `--suggest-weights`."""
    parser = default_argument_parser(epilog)
    parser.add_argument(
        "--eval-teacher", action="store_true", help="evaluate the teacher alone on DATASETS.TEST"
    )
    parser.add_argument(
        "--suggest-weights",
        type=int,
        metavar="ITERATIONS",
        help="train for so many iterations, 100 for example, write nothing, and print which weights of the "
        "distillation losses their gradients suggest",
    )
    parser.set_defaults(num_gpus=min(torch.cuda.device_count(), 1))
    return parser


def main(args: Any) -> None:
    """Check what the arguments ask for, then do it in every process.

    Bad input ends this process with one line and exit code 2, before anything is written; losses or
    features that are not finite with one line and exit code 1.
    """
    with _one_line_errors():
        check(args)
    launch(_run_process, args)


def _run_process(args: Any) -> None:
    with _one_line_errors():
        run(args)


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """End this process with a line instead of a traceback where that says all there is to say."""
    try:
        yield
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except FloatingPointError as error:
        remedy = (
            "The checkpoints are of before: resume from one of them with a lower SOLVER.BASE_LR or lower "
            "weights of the losses, or look for broken images and weights."
        )
        sys.stderr.write(f"error: {' '.join(str(error).split())}. {remedy}\n")
        sys.exit(1)


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
    if training:
        check_architecture(cfg)
    check_datasets(cfg, training=training, model=teacher_test_config(cfg) if args.eval_teacher else None)
    if training and uses_teacher(cfg):
        check_teacher_settings(cfg)
    if args.suggest_weights is not None:
        check_suggestion(cfg, args.suggest_weights, alone=training and not args.resume)
    check_solver(cfg, world_size(args))
    check_output(cfg)
    if training and args.suggest_weights is None:
        check_baseline(cfg)
    if training and cfg.DISTILL.EXACT_RESUME:
        check_sampler(cfg)
    check_models(cfg, args)


def check_architecture(cfg: CfgNode) -> None:
    """Refuse, with a ConfigError, a teacher beside an architecture that would train without it."""
    architecture, teacher = cfg.MODEL.META_ARCHITECTURE, cfg.DISTILL.TEACHER.CONFIG_FILE
    if teacher and cfg.DISTILL.ENABLED and architecture != DISTILLER:
        raise ConfigError(
            "MODEL.META_ARCHITECTURE",
            architecture,
            f"would train without the teacher that DISTILL.TEACHER.CONFIG_FILE names, {teacher}",
            f"Set MODEL.META_ARCHITECTURE {DISTILLER} and DISTILL.STUDENT_ARCHITECTURE {architecture}, or "
            "DISTILL.ENABLED False.",
        )


def check_output(cfg: CfgNode) -> None:
    """Refuse, with a ConfigError, an OUTPUT_DIR that is a file."""
    if os.path.isfile(cfg.OUTPUT_DIR):
        raise ConfigError("OUTPUT_DIR", cfg.OUTPUT_DIR, "is a file", "Name a folder, new or of this run.")


def check_shared_output(cfg: CfgNode, *, resume: bool) -> int:
    """The iteration of the checkpoint that the run goes on from, -1 where there is none.

    Raises:
        ConfigError: the processes do not all see the same one; in every process.
    """
    iterations = comm.all_gather(trainer_state(cfg, resume=resume).get("iteration", -1))
    if len(set(iterations)) > 1:
        raise ConfigError(
            "OUTPUT_DIR",
            cfg.OUTPUT_DIR,
            f"its last checkpoint is of iteration {sorted(set(iterations))}, depending on the machine",
            "Name a folder that all machines share.",
        )
    return iterations[0]


def run(args: Any) -> None:
    """One process of a run."""
    cfg = read_config(args)
    if args.suggest_weights is not None:
        suggest_weights(cfg, args.suggest_weights)
        return
    if cfg.DISTILL.EXACT_RESUME and not (args.eval_only or args.eval_teacher):
        resolve_seed(cfg, resume=args.resume)
    cfg.freeze()
    set_up(cfg, args)
    if args.eval_teacher:
        evaluate_teacher(cfg)
    elif args.eval_only:
        evaluate_student(cfg, resume=args.resume)
    else:
        if check_shared_output(cfg, resume=args.resume) < 0 and uses_teacher(cfg):
            require_teacher_ap(cfg)
        save_student_config(cfg)
        start = time.monotonic()
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        if comm.is_main_process():
            results = last_eval_results(trainer)
            logger.info(summary(cfg, results, time.monotonic() - start))


def set_up(cfg: CfgNode, args: Any) -> None:
    """Detectron2's `default_setup`; an evaluation leaves the `config.yaml` of the run whose folder it is in.

    What a run was tested on, which :mod:`.summary` looks for, is in that file.
    """
    path, kept = os.path.join(cfg.OUTPUT_DIR, "config.yaml"), None
    if (args.eval_only or args.eval_teacher) and comm.is_main_process() and PathManager.isfile(path):
        with PathManager.open(path) as f:
            kept = f.read()
    default_setup(cfg, args)
    if kept is not None:
        with PathManager.open(path, "w") as f:
            f.write(kept)


def check_models(cfg: CfgNode, args: Any) -> None:
    """Build and load once, on the CPU, what the run will need, and throw it away.

    Networks with operators that only GPUs have are checked when the run begins, on its GPU.

    Raises:
        ConfigError: whatever about the networks would stop the run.
    """
    device, cfg = cfg.MODEL.DEVICE, cfg.clone()
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
                state = trainer_state(cfg, resume=args.resume)
                hooks = state.get("hooks", {})
                if "optimizer" in state:
                    check_resumed_optimizer(cfg, state["optimizer"])
                ReportingCheckpointer(
                    model, cfg.OUTPUT_DIR, trusted=cfg.DISTILL.UNSAFE_LOADING
                ).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
                if uses_teacher(cfg):
                    RematchHook(cfg)
                    if MATCHING_STATE in hooks:
                        model.load_distill_state(hooks[MATCHING_STATE])
                    model.prepare()
                    model.inherit()
                teaches = uses_teacher(cfg) and bool(cfg.DISTILL.METHODS)
                other_way_round = hooks and (MATCHING_STATE in hooks) != teaches
                if other_way_round and not cfg.DISTILL.RESUME_FRESH:
                    raise ConfigError(
                        "DISTILL.ENABLED",
                        cfg.DISTILL.ENABLED,
                        "the checkpoint to resume is of a run that was the other way round",
                        RESUME_REMEDY,
                    )
    except NotImplementedError as error:
        if torch.device(device).type == "cpu":
            problem, remedy = (
                f"cannot run these networks: {error}",
                "Train on a GPU, or without that operator.",
            )
            raise ConfigError("MODEL.DEVICE", device, problem, remedy) from error
    finally:
        logging.disable(logging.NOTSET)


def save_student_config(cfg: CfgNode) -> None:
    """Write `student_config.yaml`: the student alone, for stock Detectron2.

    Its yaml config in stock keys; or, of a student from a LazyConfig, a LazyConfig with its `model`.
    """
    if not comm.is_main_process():
        return
    path = os.path.join(cfg.OUTPUT_DIR, "student_config.yaml")
    source = lazy_student(cfg)
    if source is not None:
        save_lazy(load_lazy(*source, "DISTILL.STUDENT_ARCHITECTURE", "DISTILL.STUDENT_OPTS"), path)
        return
    with PathManager.open(path, "w") as f:
        f.write(student_config(cfg).dump())
