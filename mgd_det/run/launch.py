"""Starting processes: one, Detectron2's launcher for GPUs, or those that torchrun started."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any, Callable

import torch
import torch.distributed as dist
from detectron2.engine import launch as launch_gpus
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from mgd_det.detectron2_compat import set_local_group
from mgd_det.errors import ConfigError

TIMEOUT = timedelta(minutes=30)


def world_size(args: Any) -> int:
    """How many processes the command line or torchrun asks for."""
    if _under_torchrun():
        return int(os.environ["WORLD_SIZE"])
    return max(args.num_gpus, 1) * args.num_machines


def check_launch(args: Any) -> None:
    """Check that the processes can be started.

    Raises:
        ConfigError: they can't, for example for lack of GPUs.
    """
    if args.num_gpus < 0:
        raise ConfigError("--num-gpus", args.num_gpus, "less than 0", "0 runs on the CPU.")
    if args.num_gpus == 0 and args.num_machines > 1 and not _under_torchrun():
        raise ConfigError(
            "--num-machines",
            args.num_machines,
            "Detectron2's launcher starts GPU processes only",
            "Start CPU processes on several machines with torchrun.",
        )
    available = torch.cuda.device_count()
    # Under torchrun every process of this machine takes a GPU of its own.
    wanted = int(os.environ["LOCAL_WORLD_SIZE"]) if _under_torchrun() and args.num_gpus else args.num_gpus
    if wanted > available:
        raise ConfigError(
            "--num-gpus",
            args.num_gpus,
            f"{wanted} processes want one each, and {available} CUDA devices are visible",
            "Ask for as many as there are; 0 runs on the CPU, and torchrun several CPU processes.",
        )


def launch(job: Callable[[Any], Any], args: Any) -> None:
    """Run `job(args)` in every process that the command line or torchrun asks for.

    Args:
        job: what to do; its result is dropped.
        args: Detectron2's parsed arguments.
    """
    if _under_torchrun():
        _join_torchrun(args)
        job(args)
        comm.synchronize()  # who leaves first takes the connections of the others down
        dist.destroy_process_group()
    elif world_size(args) == 1:
        job(args)
    else:
        try:
            launch_gpus(
                job,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
        except ProcessExitedException as error:  # which has said why
            sys.exit(error.exit_code)


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _join_torchrun(args: Any) -> None:
    on_gpu = args.num_gpus > 0
    local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if on_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    set_local_group(local_size)
    comm.synchronize()
