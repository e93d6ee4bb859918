"""Random streams that side work leaves as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from mgd_det.rng import isolated_rng, step_generator


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(1).item()


def seed(value: int) -> None:
    random.seed(value)
    np.random.seed(value)
    torch.manual_seed(value)


@pytest.fixture
def seeded() -> tuple[float, float, float]:
    """All three streams freshly seeded, and the draws that would come next."""
    seed(5)
    following = draws()
    seed(5)
    return following


class TestIsolatedRng:
    def test_gives_all_streams_back_as_they_were(self, seeded: tuple[float, ...]) -> None:
        with isolated_rng():
            draws()
        assert draws() == seeded

    def test_gives_them_back_after_they_were_seeded_inside(self, seeded: tuple[float, ...]) -> None:
        with isolated_rng():
            seed(77)
        assert draws() == seeded

    def test_gives_them_back_after_an_exception_and_lets_it_through(self, seeded: tuple[float, ...]) -> None:
        def fail() -> None:
            with isolated_rng():
                draws()
                raise KeyError("inside")

        with pytest.raises(KeyError, match="inside"):
            fail()
        assert draws() == seeded

    def test_gives_back_a_normal_draw_that_numpy_and_python_hold_in_store(self) -> None:
        # Both draw normal values in pairs and keep the second for the next call.
        seed(5)
        random.gauss(0, 1), np.random.randn()
        stored = random.gauss(0, 1), np.random.randn()
        seed(5)
        random.gauss(0, 1), np.random.randn()
        with isolated_rng():
            random.gauss(0, 1), np.random.randn()
        assert (random.gauss(0, 1), np.random.randn()) == stored

    def test_goes_on_inside_from_where_the_streams_were(self, seeded: tuple[float, ...]) -> None:
        with isolated_rng():
            assert draws() == seeded

    def test_may_be_nested(self, seeded: tuple[float, ...]) -> None:
        with isolated_rng():
            draws()
            with isolated_rng():
                draws()
            draws()
        assert draws() == seeded


class TestStepGenerator:
    def test_leaves_the_streams_alone_and_repeats(self, seeded: tuple[float, ...]) -> None:
        found = [
            torch.rand(3, generator=step_generator(torch.device("cpu"), 4, 0)).tolist() for _ in range(2)
        ]
        assert found[0] == found[1]
        assert draws() == seeded

    def test_differs_by_step_rank_and_use(self) -> None:
        keys = [(4, 0), (5, 0), (4, 1), (4, 0, 1), (4, 0, 2), (4, 1, 1)]
        found = {torch.rand(1, generator=step_generator(torch.device("cpu"), *key)).item() for key in keys}
        assert len(found) == len(keys)
