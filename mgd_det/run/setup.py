"""The log and the first files of a run, which come after its networks are built and loaded."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging.handlers import MemoryHandler

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from mgd_det.errors import ConfigError
from mgd_det.rng import isolated_rng

LOGGERS = ("detectron2", "fvcore")  # those that `default_setup` sets up


@contextmanager
def building(cfg: CfgNode) -> Iterator[Sequence[logging.LogRecord]]:
    """Build and load networks inside, before there is a log; yields what is logged, for :func:`set_up`.

    Raises:
        ConfigError: the networks have operators that MODEL.DEVICE lacks.
    """
    held = MemoryHandler(capacity=0)  # without a target it keeps every record
    loggers = [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [held], False
        logger.setLevel(logging.DEBUG)
    try:
        yield held.buffer
    except NotImplementedError as error:
        if torch.device(cfg.MODEL.DEVICE).type != "cpu":
            raise
        problem = f"cannot run these networks: {error}"
        remedy = "Train on a GPU, or without that operator."
        raise ConfigError("MODEL.DEVICE", cfg.MODEL.DEVICE, problem, remedy) from error
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def set_up(cfg: CfgNode, args: Namespace, records: Sequence[logging.LogRecord]) -> None:
    """Run Detectron2's `default_setup`, then log what was held back.

    An evaluation leaves the `config.yaml` of the run whose folder it is in, since :mod:`.summary` reads there
    what the run was tested on. The random streams stay as they are: the networks have been built from them.
    """
    path, kept = os.path.join(cfg.OUTPUT_DIR, "config.yaml"), None
    if (args.eval_only or args.eval_teacher) and comm.is_main_process() and PathManager.isfile(path):
        with PathManager.open(path) as f:
            kept = f.read()
    seeding = logging.getLogger("detectron2.utils.env")
    seeding.disabled = True  # it would log a seed that is not used
    with isolated_rng():
        default_setup(cfg, args)
    seeding.disabled = False
    if kept is not None:
        with PathManager.open(path, "w") as f:
            f.write(kept)
    for record in records:
        logging.getLogger(record.name).handle(record)
