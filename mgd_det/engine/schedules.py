"""Functions of the iteration: when the matching is solved, and how much the losses count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateSchedule:
    """When to solve the matching again; it is solved before the first iteration in any case.

    Args:
        period: every so many iterations; 0: never.
        slow_after: beyond this iteration `slow_period` takes the place of `period`.
        slow_period: every so many iterations; 0: never.
        iterations: exactly these instead, if any are given.
        until: none after this iteration; 0: no end.
    """

    period: int
    slow_after: int
    slow_period: int
    iterations: Sequence[int] = ()
    until: int = 0

    def due(self, iteration: int) -> bool:
        """Whether the matching is solved before this iteration."""
        if iteration == 0:
            return True
        if self.until and iteration > self.until:
            return False
        if self.iterations:
            return iteration in self.iterations
        period = self.period if iteration <= self.slow_after else self.slow_period
        return period > 0 and iteration % period == 0


@dataclass(frozen=True)
class WeightSchedule:
    """A factor on all distillation losses: a linear rise, 1, a linear fall, and 0 from then on.

    Args:
        warmup: iterations of the rise; 0: none.
        decay_from: iteration at which the fall begins; 0: none, the losses stop at once.
        stop: iteration from which on the factor is 0; 0: no end.
    """

    warmup: int = 0
    decay_from: int = 0
    stop: int = 0

    def factor(self, iteration: int) -> float:
        """In [0, 1]."""
        if self.stop and iteration >= self.stop:
            return 0.0
        rise = min((iteration + 1) / self.warmup, 1.0) if self.warmup else 1.0
        falling = self.stop and self.decay_from and iteration >= self.decay_from
        fall = (self.stop - iteration) / (self.stop - self.decay_from) if falling else 1.0
        return rise * fall
