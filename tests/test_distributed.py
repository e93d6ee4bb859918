"""Sums over processes and a number that process 0 gives to all, with real processes that talk by gloo."""

from __future__ import annotations

import multiprocessing

import pytest
import torch
import torch.distributed as dist

from mgd_det.distributed import from_first_rank, sending_device, sum_over_ranks


def _process(rank: int, store: str, answers) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    total = torch.tensor([1.0 + rank, 4.0])
    sum_over_ranks(total)
    answers.put((rank, from_first_rank(5 + rank), tuple(total.tolist())))
    dist.destroy_process_group()


def test_all_have_the_sum_and_the_number_of_the_first(tmp_path):
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
    assert found == {(0, 5, (3.0, 8.0)), (1, 5, (3.0, 8.0))}
    assert from_first_rank(7) == 7


@pytest.mark.parametrize(
    "device, backend, expected",
    [
        ("cpu", "gloo", "cpu"),
        ("cpu", "nccl", "cuda"),
        ("cuda:1", "nccl", "cuda:1"),
        ("cuda:1", "gloo", "cuda:1"),
    ],
)
def test_nccl_sends_from_gpus_alone(device, backend, expected):
    assert sending_device(torch.device(device), backend) == torch.device(expected)
