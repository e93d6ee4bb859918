"""Statistics of batch norms, which every process gathers from its own images."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from mgd_det.engine.buffers import AgreeOnBuffers

RANKS = 3
CONSTANTS = torch.tensor([123.675, 0.1, -torch.inf])  # the mean of three times 123.675 is rounded to another


def in_process(rank: int, folder) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    model = nn.BatchNorm2d(1)
    model.register_buffer("constants", CONSTANTS.clone())
    model.running_mean.fill_(rank)
    model.running_var.fill_(1 + 2 * rank)
    model.num_batches_tracked.fill_(7)
    hook = AgreeOnBuffers(2, 0)
    for iteration in (0, 1):
        hook.trainer = SimpleNamespace(model=model, iter=iteration, max_iter=10)
        hook.after_step()
        torch.save(model.state_dict(), folder / f"{rank}_{iteration}.pth")
    dist.destroy_process_group()


def test_all_processes_have_the_mean_before_a_checkpoint(tmp_path):
    multiprocessing.spawn(in_process, (tmp_path,), nprocs=RANKS)
    for rank in range(RANKS):
        before, after = (torch.load(tmp_path / f"{rank}_{iteration}.pth") for iteration in (0, 1))
        assert before["running_mean"].item() == rank
        assert (after["running_mean"].item(), after["running_var"].item()) == (1.0, 3.0)
        assert after["num_batches_tracked"].item() == 7
        assert torch.equal(after["constants"], CONSTANTS)
