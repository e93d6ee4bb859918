"""A training run in one process."""

from __future__ import annotations

import logging
import os
import time
import zlib
from argparse import Namespace

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from mgd_det.checkpoint.checkpointer import last_checkpoint, trainer_state
from mgd_det.config import save_student_config, uses_teacher
from mgd_det.detectron2_compat import last_eval_results
from mgd_det.engine.exact_resume import resolve_seed
from mgd_det.engine.rematch import detector_of
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError

from .evaluation import require_teacher_ap
from .output import claimed
from .setup import building, set_up
from .summary import summary

logger = logging.getLogger("detectron2." + __name__)


def train(cfg: CfgNode, args: Namespace) -> None:
    """Train and evaluate as the config says.

    Everything is built and loaded before the first file is written, so that whatever is wrong with the
    networks, their weights or the checkpoint leaves OUTPUT_DIR as it was.

    Raises:
        ConfigError: something is.
    """
    if cfg.DISTILL.EXACT_RESUME:
        resolve_seed(cfg, resume=args.resume)
    cfg.freeze()
    check_shared_output(cfg, resume=args.resume)
    resumed = last_checkpoint(cfg, resume=args.resume)
    with building(cfg) as log:
        # As `default_setup` seeds it: the initial weights are those of stock Detectron2.
        seed_all_rng(stream_seed(cfg, resumed))
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    with claimed(cfg, args, resumed) as aside:
        set_up(cfg, args, log)
        if aside:
            logger.info("--start-over: the files of the earlier run are in %s", aside)
        if uses_teacher(cfg) and trainer.start_iter == 0:
            require_teacher_ap(cfg, detector_of(trainer).teacher)
        if comm.is_main_process() and not uses_teacher(cfg):  # otherwise RematchHook does
            save_student_config(cfg)
        start = time.monotonic()
        trainer.train()
        if comm.is_main_process():
            results = last_eval_results(trainer)
            logger.info(summary(cfg, results, time.monotonic() - start))


def stream_seed(cfg: CfgNode, resumed: str) -> int | None:
    """Returns the seed of this process's random streams, None where they are to be drawn.

    Detectron2 draws the order of the images from them. A run that resumes from a checkpoint takes another
    order than before: otherwise one that is often interrupted would never see the end of its data.

    Args:
        resumed: path of the checkpoint, "" for a new run.
    """
    if cfg.SEED < 0:
        return None
    if not resumed:
        return cfg.SEED + comm.get_rank()
    key = (cfg.SEED, comm.get_rank(), zlib.crc32(os.path.basename(resumed).encode()))
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def check_shared_output(cfg: CfgNode, *, resume: bool) -> None:
    """Check that all processes resume from one checkpoint.

    Raises:
        ConfigError: they see different ones in OUTPUT_DIR; in every process.
    """
    if comm.get_world_size() == 1:
        return
    iterations = set(comm.all_gather(trainer_state(cfg, resume=resume).get("iteration", -1)))
    if len(iterations) > 1:
        raise ConfigError(
            "OUTPUT_DIR",
            cfg.OUTPUT_DIR,
            f"its last checkpoint is of iteration {sorted(iterations)}, depending on the machine",
            "Name a folder that all machines share.",
        )
