"""The folder that a run writes to: it loses no earlier work, and one run at a time uses it."""

from __future__ import annotations

import errno
import logging
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob

from detectron2.config import CfgNode
from detectron2.utils import comm
from filelock import FileLock, Timeout

from mgd_det.checkpoint.checkpointer import last_checkpoint
from mgd_det.errors import ConfigError

logger = logging.getLogger("detectron2." + __name__)

# What earlier training leaves and further training would replace or append to.
EARLIER = ("last_checkpoint", "model_*.pth", "metrics.json")
# All files of a run, by the names that this project and Detectron2 give them.
RUN_FILES = (
    *EARLIER,
    *("config.yaml", "student_config.yaml", "log.txt*", "events.out.tfevents.*"),
    *("inference*", "ema", "*.partial"),
)
# The folder in OUTPUT_DIR that --eval-teacher writes to.
TEACHER_FOLDER = "teacher"
# Errors of file systems without locks, such as some on clusters.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
# Seconds to wait for a lock. Loader processes of a run that was killed notice that within five.
PATIENCE = 6


def check_output(cfg: CfgNode, args: Namespace) -> None:
    """Check that a command may write to OUTPUT_DIR.

    Raises:
        ConfigError: it cannot be a folder; or training there would overwrite networks that it reads, or an
            earlier run.
    """
    folder = cfg.OUTPUT_DIR
    if "://" not in folder:
        _check_folder(folder)
    trains = not (args.eval_only or args.eval_teacher or args.suggest_weights is not None)
    if args.start_over and (args.resume or not trains):
        problem = "does not go with --resume, --eval-only, --eval-teacher or --suggest-weights"
        raise ConfigError("--start-over", True, problem, "Give one of them.")
    if args.eval_teacher:
        _check_teacher_folder(cfg)
    if not trains:
        return
    _check_inputs(cfg, resume=args.resume)
    found = _found(folder, EARLIER)
    if found and not (args.resume or args.start_over):
        raise ConfigError(
            "OUTPUT_DIR",
            folder,
            f"holds {os.path.basename(found[0])} of an earlier run, which a new one would overwrite",
            "Go on with that run with --resume, name another OUTPUT_DIR, or give --start-over, which moves "
            "its files aside.",
        )


def _check_folder(folder: str) -> None:
    problem = ""
    if os.path.islink(folder) and not os.path.exists(folder):
        problem = f"is a link to {os.readlink(folder)}, which is not there"
    elif os.path.exists(folder) and not os.path.isdir(folder):
        problem = "is a file"
    else:
        parent = os.path.abspath(folder)
        while not os.path.lexists(parent):
            parent = os.path.dirname(parent)
        if not os.path.isdir(parent):
            problem = f"is to be made in {parent}, which is no folder"
        elif not os.access(parent, os.W_OK | os.X_OK):
            problem = f"cannot be written to: {parent} belongs to somebody else, or is read-only"
    if problem:
        raise ConfigError("OUTPUT_DIR", folder, problem, "Name a folder, new or of this run.")


def _check_inputs(cfg: CfgNode, *, resume: bool) -> None:
    inputs = {
        "DISTILL.TEACHER.CONFIG_FILE": cfg.DISTILL.TEACHER.CONFIG_FILE,
        "DISTILL.TEACHER.WEIGHTS": cfg.DISTILL.TEACHER.WEIGHTS,
        "DISTILL.BASELINE": os.path.join(cfg.DISTILL.BASELINE, "config.yaml") if cfg.DISTILL.BASELINE else "",
        "MODEL.WEIGHTS": "" if last_checkpoint(cfg, resume=resume) else cfg.MODEL.WEIGHTS,
    }
    for key, path in inputs.items():
        if path and os.path.exists(path) and _is_in(path, cfg.OUTPUT_DIR):
            raise ConfigError(
                "OUTPUT_DIR",
                cfg.OUTPUT_DIR,
                f"is the folder of {key} {path}, whose files this run would overwrite",
                "Name another OUTPUT_DIR."
                + (" --resume continues the run in it." if key == "MODEL.WEIGHTS" and not resume else ""),
            )


def _check_teacher_folder(cfg: CfgNode) -> None:
    """Refuse an evaluation of the teacher whose files would take the place of those of a training."""
    folder = os.path.join(cfg.OUTPUT_DIR, TEACHER_FOLDER)
    trained = _found(folder, ("last_checkpoint", "model_*.pth"))
    own = (cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DISTILL.TEACHER.WEIGHTS)
    trained += [path for path in own if path and os.path.exists(path) and _is_in(path, folder)]
    if trained:
        problem = f"{trained[0]} is of a training, whose config and metrics the evaluation would overwrite"
        raise ConfigError("OUTPUT_DIR", cfg.OUTPUT_DIR, problem, "Name another OUTPUT_DIR.")


def _is_in(path: str, folder: str) -> bool:
    """Returns True for a file of this very folder, by its name or by what that is a link to."""
    folder = os.path.realpath(folder)
    return folder in (os.path.realpath(os.path.dirname(path)), os.path.dirname(os.path.realpath(path)))


def _found(folder: str, patterns: tuple[str, ...]) -> list[str]:
    return sorted({path for pattern in patterns for path in glob(os.path.join(escape(folder), pattern))})


@contextmanager
def claimed(cfg: CfgNode, args: Namespace, resumed: str | None = None) -> Iterator[str]:
    """Keep other runs out of OUTPUT_DIR while inside; every process calls it.

    The main process holds the lock, which ends with that process, however it ends.

    Args:
        cfg: the config of the run.
        args: its parsed arguments.
        resumed: the checkpoint that the run has loaded, which must still be the last one; None: any may be.

    Yields:
        The folder that `--start-over` has moved an earlier run's files to, "" if there were none.

    Raises:
        ConfigError: another run uses the folder, or has used it since it was checked; in every process.
    """
    if "://" in cfg.OUTPUT_DIR:  # object stores have no locks
        yield ""
        return
    lock, aside, error = FileLock(os.path.join(cfg.OUTPUT_DIR, ".lock")), "", None
    if comm.is_main_process():
        try:
            take_lock(lock, cfg.OUTPUT_DIR)
            check_output(cfg, args)
            if resumed is not None and last_checkpoint(cfg, resume=args.resume) != resumed:
                problem = "another run has written a checkpoint there since this one started"
                raise ConfigError("OUTPUT_DIR", cfg.OUTPUT_DIR, problem, "Start this one again.")
            aside = _move_aside(cfg.OUTPUT_DIR) if args.start_over else ""
        except ConfigError as problem:
            error = problem
    try:
        error, aside = comm.all_gather((error, aside))[0]
        if error is not None:
            raise error
        yield aside
    finally:
        lock.release()


def take_lock(lock: FileLock, folder: str) -> None:
    """Take the lock of a folder, where its file system has locks.

    Raises:
        ConfigError: another run has it, or nothing can be written to the folder.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        lock.acquire(timeout=PATIENCE)
    except Timeout as error:
        remedy = "Wait until it has ended, or name another OUTPUT_DIR."
        raise ConfigError("OUTPUT_DIR", folder, "another run is using this folder", remedy) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, NotImplementedError) or error.errno in NO_LOCKS:
            logger.warning(
                "OUTPUT_DIR %s: its file system has no locks, so nothing keeps other runs out", folder
            )
            return
        problem = f"cannot be written to ({error.strerror or error})"
        raise ConfigError("OUTPUT_DIR", folder, problem, "Name a folder that can.") from error


def _move_aside(folder: str) -> str:
    """Move the files of an earlier run to a new folder inside; returns its path, "" if there are none."""
    files = _found(folder, RUN_FILES)
    if not files:
        return ""
    number = 1
    while os.path.exists(aside := os.path.join(folder, f"earlier_{number}")):
        number += 1
    os.mkdir(aside)
    for path in files:
        os.replace(path, os.path.join(aside, os.path.basename(path)))
    return aside
