"""Check the values of config keys that several methods share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

from mgd_det.errors import ConfigError

from .base import HEAD_TAPS

_T = TypeVar("_T")


def named_taps(key: str, taps: Sequence[str], *, heads: Sequence[str] = ()) -> list[str]:
    """Return the taps as a list.

    Args:
        key: config key that they come from.
        taps: names of taps.
        heads: taps in the head on which the method works.

    Raises:
        ConfigError: no tap is named, one is named twice, or the method does not work on one.
    """
    taps = list(taps)
    problem = ""
    if not taps:
        problem = "no tap is named"
    elif len(set(taps)) != len(taps):
        problem = "a tap is named twice"
    elif unfit := [tap for tap in taps if tap not in heads and not set(HEAD_TAPS).isdisjoint(tap.split("="))]:
        problem = f"this method does not work on {unfit[0]!r}"
    if problem:
        example = 'Name each tap once, for example ["res3", "res4", "res5"] or ["p3", "p4", "p5"].'
        raise ConfigError(key, taps, problem, example)
    return taps


def tap_weights(key: str, weights: Sequence[float], taps: Sequence[str]) -> dict[str, float]:
    """Return the weight of each tap, from one weight for all taps or one for each.

    Raises:
        ConfigError: a weight is not a finite number of at least 0, or there are too few or too many.
    """
    weights = list(weights)
    if not all(_is_number(weight, 0) for weight in weights):
        raise ConfigError(key, weights, "not all are numbers of at least 0", "Give numbers like 0.05.")
    if len(weights) not in (1, len(taps)):
        raise ConfigError(
            key,
            weights,
            f"{len(weights)} weights for {len(taps)} taps",
            "Give one weight for all taps, or one for each.",
        )
    return dict(zip(taps, weights * (len(taps) // len(weights))))


def number(key: str, value: float, *, least: float = 0.0) -> float:
    """Return the value of a key; raise a ConfigError unless it is a finite number of at least `least`."""
    if not _is_number(value, least):
        raise ConfigError(key, value, f"not a number of at least {least:g}", "Give a number like 0.05.")
    return value


def above_zero(key: str, value: float) -> float:
    """Return the value of a key; raise a ConfigError unless it is a finite number above 0."""
    if not (_is_number(value, 0) and value > 0):
        raise ConfigError(key, value, "not a finite number over 0", "Give a number like 1.0.")
    return value


def _is_number(value: object, least: float) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= least


def choice(key: str, value: _T, known: Iterable[_T]) -> _T:
    """Return the value of a key; raise a ConfigError unless it is one of those known."""
    known = list(known)
    if value not in known:
        raise unknown(key, value, known)
    return value


def unknown(key: str, value: object, known: Iterable[object]) -> ConfigError:
    """Return the error of a value that is none of those known."""
    return ConfigError(key, value, "unknown", f"Choose one of {', '.join(map(repr, known))}.")


def module_key(tap: str) -> str:
    """Return a tap's name in a form that torch allows as a module's name."""
    return tap.replace(".", "/")
