"""One run, from the command line to the last evaluation."""

from __future__ import annotations

import argparse
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from mgd_det.checkpoint.checkpointer import disk_full
from mgd_det.config.functions import add_config_flag, config_functions
from mgd_det.data.datasets import register_datasets
from mgd_det.data.readable import UnreadableImage
from mgd_det.errors import ConfigError

from .evaluation import evaluate_student, evaluate_teacher
from .launch import launch
from .preflight import preflight
from .suggest_weights import suggest_weights
from .training import train


def argument_parser(epilog: str) -> argparse.ArgumentParser:
    """Returns Detectron2's parser with the flags of this project added."""
    parser = default_argument_parser(epilog)
    add_config_flag(parser)
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
    parser.add_argument(
        "--start-over",
        action="store_true",
        help="train anew in an OUTPUT_DIR that holds an earlier run, whose files are moved to "
        "OUTPUT_DIR/earlier_N",
    )
    parser.set_defaults(num_gpus=min(torch.cuda.device_count(), 1))
    return parser


def main(args: Namespace) -> None:
    """Check what the arguments ask for, then do it in every process.

    Bad input ends a process with one line and exit code 2, before anything is written; losses or features
    that are not finite end it with one line and exit code 1.
    """
    with one_line_errors():
        cfg = preflight(args)
    launch(run_process, cfg, args)


def run_process(cfg: CfgNode, args: Namespace) -> None:
    """Run one process; an error that its message explains ends it with that line."""
    with one_line_errors():
        run(cfg, args)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End this process with a line, instead of a traceback, where that says all there is to say."""
    try:
        yield
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except UnreadableImage as error:
        # A loader's worker process hands it on in several lines, of which the last one has the message.
        message = str(error).strip().splitlines()[-1]
        sys.stderr.write(f"error: {message.split(f'{UnreadableImage.__name__}: ')[-1]}\n")
        sys.exit(2)
    except OSError as error:
        if not disk_full(error):
            raise
        sys.stderr.write(f"error: {error}: make room, then go on from the last checkpoint with --resume\n")
        sys.exit(1)
    except FloatingPointError as error:
        remedy = (
            "The checkpoints are of before: resume from one of them with a lower SOLVER.BASE_LR or lower "
            "weights of the losses, or look for broken images and weights."
        )
        sys.stderr.write(f"error: {' '.join(str(error).split())}. {remedy}\n")
        sys.exit(1)


def run(cfg: CfgNode, args: Namespace) -> None:
    """Do in one process what the arguments ask for."""
    # A process that was spawned has done neither.
    config_functions(cfg.DISTILL.CONFIG_FUNCTIONS)
    register_datasets(cfg)
    if args.suggest_weights is not None:
        suggest_weights(cfg, args.suggest_weights)
    elif args.eval_teacher:
        evaluate_teacher(cfg, args)
    elif args.eval_only:
        evaluate_student(cfg, args)
    else:
        train(cfg, args)
