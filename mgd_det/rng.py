"""Random numbers beside the training's streams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_rng() -> Iterator[None]:
    """Restore Python's, NumPy's and torch's (CPU and current CUDA device) random states on exit."""
    python, numpy_state = random.getstate(), np.random.get_state()
    cuda = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=cuda):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def step_generator(device: torch.device, step: int, rank: int, *use: int) -> torch.Generator:
    """Returns a random stream of one training step on one process; the training's streams are left alone.

    Args:
        device: of the numbers to draw.
        step: of the training.
        rank: the process's number.
        use: numbers from 1, by which several streams of a step differ.
    """
    key = np.random.SeedSequence((step, rank, *use)).generate_state(1)
    return torch.Generator(device).manual_seed(int(key[0]))
