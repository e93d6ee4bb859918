"""The precision and memory order in which a teacher is fastest on this machine, where both may be chosen."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from mgd_det.clock import now
from mgd_det.config.values import AUTO

logger = logging.getLogger("detectron2." + __name__)

# How far the features of a way that is taken may be from the first way's, of their Euclidean norm at a tap.
# Rounding to bfloat16 changes a number by up to 0.4%, features of the demonstration's teacher by up to 1%.
TOLERANCE = 0.02
TRIALS = 3
CPU_PRECISIONS = ("float32", "bfloat16")
PRECISIONS = (*CPU_PRECISIONS, "float16")


class Way(NamedTuple):
    """The precision and the memory order in which a teacher computes."""

    dtype: str  # a value of DISTILL.TEACHER.DTYPE
    channels_last: bool

    def __str__(self) -> str:
        order = "channels_last" if self.channels_last else "contiguous"
        return f"{self.dtype or 'the precision of the training'}, {order}"


def ways(dtype: str, channels_last: bool | str | None, device: torch.device) -> list[Way]:
    """Returns what there is to choose from, first the way that the others must agree with.

    Args:
        dtype, channels_last: values of the keys of `DISTILL.TEACHER`.
        device: of the teacher.
    """
    known = CPU_PRECISIONS if device.type == "cpu" else PRECISIONS
    precisions = known if dtype == AUTO else (dtype,)
    orders = (False, True) if channels_last == AUTO else (bool(channels_last),)
    return [Way(precision, order) for order in orders for precision in precisions]


def fastest(ways: Sequence[Way], run: Callable[[Way], Callable[[], Any]]) -> Way:
    """Returns the way that takes the least time of those that agree with the first one, and logs it.

    Args:
        ways: to choose from.
        run: prepares a way, and returns the function whose time counts. That returns features: tensors in any
            lists, tuples and mappings.
    """
    expected = list(_tensors(run(ways[0])()))
    errors = {way: relative_error(list(_tensors(run(way)())), expected) for way in ways}
    agreeing = [way for way in ways if errors[way] <= TOLERANCE or way == ways[0]]
    seconds = {way: float("inf") for way in agreeing}
    for _ in range(TRIALS):  # in turn, so that what else the machine does slows all of them down
        for way in agreeing:
            compute = run(way)
            start = now()
            compute()
            seconds[way] = min(seconds[way], now() - start)
    for way in ways:
        taken = f"{seconds[way]:.4f} s" if way in seconds else "not used"
        logger.info("the teacher in %s: %s, features differ by %.2g%%", way, taken, 100 * errors[way])
    best = min(agreeing, key=seconds.__getitem__)
    logger.info("DISTILL.TEACHER: it computes in %s", best)
    return best


def relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Returns the largest error of any tensor, as a share of the expected tensor's Euclidean norm.

    It is NaN or infinite if a value is not finite.
    """
    errors = [
        ((x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-30)).item()
        for x, y in zip(found, expected)
    ]
    return float(torch.tensor(errors).max()) if errors else 0.0


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yields the tensors in features of a network, whose taps in a head give more than one."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, Mapping)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)
