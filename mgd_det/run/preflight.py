"""The checks that are made before a run, from those of a moment to those that read the data.

Nothing here builds a network. What only the networks can tell is found when a run builds and loads them,
which it does once, before it writes its first file.
"""

from __future__ import annotations

import os
from argparse import Namespace

import torch
from detectron2.config import CfgNode

from mgd_det.checkpoint.checkpointer import last_checkpoint
from mgd_det.config import check_run_values, load_config, uses_teacher
from mgd_det.data.datasets import check_datasets, register_datasets
from mgd_det.engine.evaluators import check_augmented_test, check_evaluators
from mgd_det.errors import ConfigError
from mgd_det.modeling.build import method_class
from mgd_det.modeling.teacher import TeacherSpec

from .evaluation import teacher_test_config
from .launch import first_of_machine, under_torchrun, world_size
from .output import check_output
from .summary import last_values


def preflight(args: Namespace) -> CfgNode:
    """Read a command's config, register its data sets, and check what it asks for.

    Args:
        args: the parsed arguments.

    Returns:
        The config.

    Raises:
        ConfigError: for the first thing that would stop the run.
    """
    check_launch(args)
    device = "" if args.num_gpus else "cpu"
    cfg = load_config(args.config_file, args.opts, device=device, functions=args.config_function)
    register_datasets(cfg)
    training = not (args.eval_only or args.eval_teacher)
    check_run_values(cfg, world_size(args) if training else 1)  # an evaluation shares no batch
    if args.suggest_weights is not None:
        check_suggestion(cfg, args)
    check_output(cfg, args)
    resumed = last_checkpoint(cfg, resume=args.resume)
    learns = training and uses_teacher(cfg)
    check_files(cfg, learns=learns, eval_teacher=args.eval_teacher, resumed=resumed)
    if training and args.suggest_weights is None:
        check_baseline(cfg)
    tests_teacher = args.eval_teacher or (learns and cfg.DISTILL.TEACHER.MIN_AP > 0)
    if first_of_machine():  # the others would read the same files for the same error
        check_datasets(
            cfg,
            training=training,
            student=not args.eval_teacher,
            teacher=teacher_test_config(cfg) if tests_teacher else None,
        )
    check_evaluators(cfg)
    check_augmented_test(cfg)
    return cfg


def check_launch(args: Namespace) -> None:
    """Check that the processes can be started.

    Raises:
        ConfigError: they can't, for example for lack of GPUs.
    """
    if args.num_gpus < 0:
        raise ConfigError("--num-gpus", args.num_gpus, "less than 0", "0 runs on the CPU.")
    if args.num_gpus == 0 and args.num_machines > 1 and not under_torchrun():
        raise ConfigError(
            "--num-machines",
            args.num_machines,
            "Detectron2's launcher starts GPU processes only",
            "Start CPU processes on several machines with torchrun.",
        )
    available = torch.cuda.device_count()
    # Under torchrun every process of this machine takes a GPU of its own.
    wanted = int(os.environ["LOCAL_WORLD_SIZE"]) if under_torchrun() and args.num_gpus else args.num_gpus
    if wanted > available:
        raise ConfigError(
            "--num-gpus",
            args.num_gpus,
            f"{wanted} processes want one each, and {available} CUDA devices are visible",
            "Ask for as many as there are; 0 runs on the CPU, and torchrun several CPU processes.",
        )


def check_files(cfg: CfgNode, *, learns: bool, eval_teacher: bool, resumed: str) -> None:
    """Refuse methods, a teacher's config and local weights that are not there, before images are looked at.

    Args:
        learns: whether the run learns from the teacher.
        eval_teacher: whether it evaluates the teacher alone.
        resumed: the checkpoint that it resumes from, "" where it starts anew.

    Raises:
        ConfigError: for the first of them.
    """
    if learns:
        for name in cfg.DISTILL.METHODS:
            method_class(cfg, name)
    if learns or eval_teacher:
        spec = TeacherSpec.from_config(cfg)
        spec.input_format()  # which reads the config
        _check_weights("DISTILL.TEACHER.WEIGHTS", spec.weights_path())
    if not (eval_teacher or resumed):
        _check_weights("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)


def _check_weights(key: str, path: str) -> None:
    if path and "://" not in path and not os.path.isfile(path.partition("?")[0]):
        problem, remedy = "no such weight file", "Give the path of a weight file, a URL, or a model-zoo name."
        raise ConfigError(key, path, problem, remedy)


def check_baseline(cfg: CfgNode) -> None:
    """Refuse, with a ConfigError, a DISTILL.BASELINE with nothing to compare with."""
    folder = cfg.DISTILL.BASELINE
    without = [tested for tested in cfg.DATASETS.TEST if folder and not last_values(folder, tested)]
    if without:
        problem = f"holds no run that was evaluated on {without[0]!r}"
        raise ConfigError(
            "DISTILL.BASELINE",
            folder,
            problem,
            'Train the student alone first and give its OUTPUT_DIR, or "" for none.',
        )


def check_suggestion(cfg: CfgNode, args: Namespace) -> None:
    """Refuse, with a ConfigError, a `--suggest-weights` that has nothing to measure."""
    key, iterations = "--suggest-weights", args.suggest_weights
    if iterations < 1:
        raise ConfigError(key, iterations, "less than 1", "Give a number of iterations such as 100.")
    if args.resume or args.eval_only or args.eval_teacher:
        problem = "does not go with --resume, --eval-only or --eval-teacher"
        raise ConfigError(key, iterations, problem, "Give one of them.")
    if not (uses_teacher(cfg) and cfg.DISTILL.METHODS):
        problem = "no method adds a loss"
        remedy = (
            "Name a teacher in DISTILL.TEACHER.CONFIG_FILE, and set DISTILL.ENABLED True and "
            "DISTILL.METHODS '[\"mgd\"]'."
        )
        raise ConfigError(key, iterations, problem, remedy)
    if iterations > cfg.SOLVER.MAX_ITER:
        problem = f"more than the {cfg.SOLVER.MAX_ITER} of SOLVER.MAX_ITER"
        raise ConfigError(key, iterations, problem, "Give fewer, or a longer run.")
