"""Tests of the number that process 0 gives to all, with real processes that talk by gloo."""

from __future__ import annotations

import multiprocessing

import torch
import torch.distributed as dist

from mgd_det.distributed import from_first_rank

CPU = torch.device("cpu")


def _process(rank: int, store: str, answers) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    answers.put((rank, from_first_rank(5 + rank, CPU)))
    dist.destroy_process_group()


def test_all_take_the_number_of_the_first(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, tmp_path / "store", answers)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    found = {answers.get(timeout=60) for _ in processes}
    for process in processes:
        process.join()
    assert found == {(0, 5), (1, 5)}
    assert from_first_rank(7, CPU) == 7
