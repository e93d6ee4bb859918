"""Random streams that side work leaves alone, the error of bad settings, and what imports what."""

from __future__ import annotations

import copy
import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from mgd_det.errors import ConfigError
from mgd_det.rng import isolated_rng


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


class TestConfigError:
    def error(self) -> ConfigError:
        return ConfigError("DISTILL.MGD.NORM", "LN", "no such norm", 'Choose one of "GN", "BN", "".')

    def test_names_the_key_the_value_the_problem_and_the_remedy(self) -> None:
        message = 'DISTILL.MGD.NORM = \'LN\': no such norm. Choose one of "GN", "BN", "".'
        assert str(self.error()) == message

    def test_shows_a_value_of_any_type_as_python_writes_it(self) -> None:
        error = ConfigError("DISTILL.MGD.LOSS_WEIGHTS", [0.5, 1], "two weights for three taps", "Fix.")
        assert str(error).startswith("DISTILL.MGD.LOSS_WEIGHTS = [0.5, 1]: ")
        assert str(ConfigError("KEY", "", "empty", "Fix.")) == "KEY = '': empty. Fix."

    def test_is_a_value_error(self) -> None:
        with pytest.raises(ValueError, match="no such norm"):
            raise self.error()

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_survives_pickling_so_that_spawned_processes_can_raise_it(self, protocol: int) -> None:
        error = pickle.loads(pickle.dumps(self.error(), protocol))
        assert type(error) is ConfigError
        assert str(error) == str(self.error())
        assert error.args == self.error().args

    def test_survives_being_copied_and_pickled_twice(self) -> None:
        error = copy.deepcopy(pickle.loads(pickle.dumps(self.error())))
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is ConfigError
        assert str(again) == str(self.error())


MODULES = [
    *("errors", "rng", "distributed", "methods", "losses", "margins", "matching", "reducers"),
    *("maths.norms", "maths.matching_statistics"),
]


def test_maths_and_methods_import_no_detectron2() -> None:
    code = (
        "import importlib, sys, mgd_det\n"
        f"for name in {MODULES!r}:\n"
        "    importlib.import_module('mgd_det.' + name)\n"
        "mgd_det.losses, mgd_det.margins, mgd_det.matching, mgd_det.reducers\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    )
    # The path of this process, so that the package is found however the suite is run.
    command = f"import sys; sys.path[:] = {sys.path!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert {"mgd_det", "torch"} <= imported
    assert imported.isdisjoint({"detectron2", "fvcore", "iopath", "yacs"})
