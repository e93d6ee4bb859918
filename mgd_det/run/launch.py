"""Starting processes: one, Detectron2's launcher for GPUs, or those that torchrun started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import launch as launch_gpus
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from mgd_det.detectron2_compat import set_local_group
from mgd_det.engine.signals import SIGNALS

TIMEOUT = timedelta(minutes=30)


def world_size(args: Namespace) -> int:
    """Returns the number of processes that the command line or torchrun asks for."""
    if under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return max(args.num_gpus, 1) * args.num_machines


def launch(job: Callable[[CfgNode, Namespace], None], cfg: CfgNode, args: Namespace) -> None:
    """Run `job(cfg, args)` in every process that the command line or torchrun asks for.

    Args:
        job: a function of a module, which spawned processes can find.
        cfg: the config of the run.
        args: Detectron2's parsed arguments.
    """
    if under_torchrun():
        _join_torchrun(args)
        job(cfg, args)
        comm.synchronize()  # a process that leaves first would take the others' connections down
        dist.destroy_process_group()
    elif world_size(args) == 1:
        job(cfg, args)
    else:
        try:
            with signals_passed_on():
                launch_gpus(
                    job,
                    args.num_gpus,
                    num_machines=args.num_machines,
                    machine_rank=args.machine_rank,
                    dist_url=args.dist_url,
                    args=(cfg, args),
                )
        except ProcessExitedException as error:  # the process has written why
            code = error.exit_code
            sys.exit(code if code >= 0 else 128 - code)  # a negative one is of a signal


@contextmanager
def signals_passed_on() -> Iterator[None]:
    """Pass the signals that end a training on to the spawned processes, and wait for these to end."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in multiprocessing.active_children():
            if child.pid is not None:
                os.kill(child.pid, number)

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, pass_on) for number in heeded}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def under_torchrun() -> bool:
    """Returns True if torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def first_of_machine() -> bool:
    """Returns True in one process of each machine, before processes are connected."""
    return not under_torchrun() or os.environ["LOCAL_RANK"] == "0"


def _join_torchrun(args: Namespace) -> None:
    on_gpu = args.num_gpus > 0
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    set_local_group(local_size)
    comm.synchronize()
