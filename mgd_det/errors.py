"""The errors that bad input ends in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The way out for settings that a checkpoint was not made with.
RESUME_REMEDY = (
    "Resume with the settings of that run, set DISTILL.RESUME_FRESH True to start the distiller's matching "
    "and adapters afresh, or start a new run in another OUTPUT_DIR."
)


class ConfigError(ValueError):
    """Raised for a setting that cannot work; the message names the key, the value and the way out.

    Args:
        key: the config key or command-line flag.
        value: the value that it was set to.
        problem: a clause that says what is wrong with it.
        remedy: a sentence that says what to do.
    """

    def __init__(self, key: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(" ".join(f"{key} = {value!r}: {problem}. {remedy}".split()))

    def __reduce__(self) -> tuple[Callable[[str], ConfigError], tuple[str]]:
        # Pickled as its message, so that it survives the way between processes.
        return _rebuild, (str(self),)


class UnknownTap(LookupError):
    """Raised for a tap that a network does not have; the message lists those it has."""


def _rebuild(message: str) -> ConfigError:
    error = ConfigError.__new__(ConfigError)
    ValueError.__init__(error, message)
    return error


@contextmanager
def building_from_config(key: str, value: object) -> Iterator[None]:
    """Turn the exceptions that Detectron2 raises while it builds a network from a config into ConfigErrors.

    Args:
        key: the key that names the config or the architecture.
        value: its value.
    """
    try:
        yield
    except ConfigError:
        raise
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        problem = f"Detectron2 cannot build this network ({type(error).__name__}: {error})"
        raise ConfigError(key, value, problem, "Correct the MODEL keys of that config.") from error
