"""Checks that the config nodes of several methods share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from mgd_det.errors import ConfigError

from .base import HEAD_TAPS


def named_taps(key: str, taps: Sequence[str], *, heads: Sequence[str] = ()) -> list[str]:
    """The taps, each named once; of those in the head only `heads` are of use to the method."""
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
    """The weight of each tap, from one for all or one for each."""
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


def number(key: str, value: Any, *, least: float = 0.0) -> float:
    """A finite number of at least `least`."""
    if not _is_number(value, least):
        raise ConfigError(key, value, f"not a number of at least {least:g}", "Give a number like 0.05.")
    return value


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= least


def choice(key: str, value: Any, known: Iterable[Any]) -> Any:
    """One of those known."""
    known = list(known)
    if value not in known:
        raise unknown(key, value, known)
    return value


def unknown(key: str, value: Any, known: Iterable[Any]) -> ConfigError:
    """The error of a value that is none of those known."""
    return ConfigError(key, value, "unknown", f"Choose one of {', '.join(map(repr, known))}.")


def module_key(tap: str) -> str:
    """A tap's name as torch allows it for a module."""
    return tap.replace(".", "/")
