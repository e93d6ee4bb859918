"""The error that bad input ends in."""

from __future__ import annotations


class ConfigError(ValueError):
    """A setting that cannot work; its message names the key, the value and the way out.

    Args:
        key: the config key or command-line flag.
        value: what it was set to.
        problem: what is wrong with it, as a clause.
        remedy: what to do, as a sentence.
    """

    def __init__(self, key: str, value: object, problem: str, remedy: str) -> None:
        super().__init__(f"{key} = {value!r}: {problem}. {remedy}")

    def __reduce__(self):  # carried between processes as its message
        return _rebuild, (str(self),)


def _rebuild(message: str) -> ConfigError:
    error = ConfigError.__new__(ConfigError)
    ValueError.__init__(error, message)
    return error
