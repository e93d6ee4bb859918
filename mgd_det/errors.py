"""The error that bad input ends in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

# For settings that a checkpoint was not made with.
RESUME_REMEDY = (
    "Resume with the settings of that run, set DISTILL.RESUME_FRESH True to start the distiller's matching "
    "and adapters afresh, or start a new run in another OUTPUT_DIR."
)


class ConfigError(ValueError):
    """A setting that cannot work; its message names the key, the value and the way out.

    Args:
        key: the config key or command-line flag.
        value: what it was set to.
        problem: what is wrong with it, as a clause.
        remedy: what to do, as a sentence.
    """

    def __init__(self, key: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(" ".join(f"{key} = {value!r}: {problem}. {remedy}".split()))

    def __reduce__(self):  # carried between processes as its message
        return _rebuild, (str(self),)


class UnknownTap(LookupError):
    """A network has no tap of that name; the message lists those it has."""


def _rebuild(message: str) -> ConfigError:
    error = ConfigError.__new__(ConfigError)
    ValueError.__init__(error, message)
    return error


@contextmanager
def explained(key: str, value: object) -> Iterator[None]:
    """Turn what Detectron2 raises while it builds a network from a config into a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except (KeyError, AssertionError, ValueError, TypeError, AttributeError) as error:
        problem = f"Detectron2 cannot build this network ({type(error).__name__}: {error})"
        raise ConfigError(key, value, problem, "Correct the MODEL keys of that config.") from error
