"""The error of a bad setting: its message, and its way between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from mgd_det.errors import ConfigError


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
