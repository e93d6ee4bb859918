"""Functions of the iteration: when something is due, and how much the distillation losses count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode


def due(period: int, iteration: int, step: int = 1) -> bool:
    """Returns True in every `period`-th iteration, from 0; a period of 0 means never.

    Args:
        period: the number of iterations from one time to the next.
        iteration: a multiple of `step`.
        step: where only its multiples can be chosen, the first one takes the place of what lies before it.
    """
    return period > 0 and iteration % period < step


@dataclass(frozen=True)
class UpdateSchedule:
    """Says before which iterations the matching is solved; it is solved before the first one in any case.

    Args:
        period: solve every `period` iterations; 0: never again, whatever `slow_period` is.
        slow_after: beyond this iteration `slow_period` takes the place of `period`.
        slow_period: solve every `slow_period` iterations from then on; 0: never again.
        iterations: solve before exactly these instead, if any are given.
        until: do not solve after this iteration; 0: no end.
    """

    period: int
    slow_after: int
    slow_period: int
    iterations: Sequence[int] = ()
    until: int = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> UpdateSchedule:
        """Reads DISTILL.MATCHING and DISTILL.EXPERIMENT."""
        matching, experiment = cfg.DISTILL.MATCHING, cfg.DISTILL.EXPERIMENT
        return cls(
            matching.PERIOD,
            experiment.SLOW_AFTER,
            experiment.SLOW_PERIOD,
            tuple(matching.ITERATIONS),
            matching.UNTIL,
        )

    def due(self, iteration: int) -> bool:
        """Returns True where the matching is solved before this iteration."""
        if iteration == 0:
            return True
        if self.until and iteration > self.until:
            return False
        if self.iterations:
            return iteration in self.iterations
        slow = self.period and iteration > self.slow_after
        return due(self.slow_period if slow else self.period, iteration)


@dataclass(frozen=True)
class WeightSchedule:
    """A factor on all distillation losses: a linear rise, 1, a linear fall, and 0 from then on.

    The teacher may run in every k-th iteration only. The factor is then k times as large in these, and 0 in
    the others.

    Args:
        warmup: iterations of the rise; 0: none.
        decay_from: iteration at which the fall begins; 0: none, the losses stop at once.
        stop: iteration from which on the factor is 0; 0: no end.
        teacher_every: k.
    """

    warmup: int = 0
    decay_from: int = 0
    stop: int = 0
    teacher_every: int = 1

    @classmethod
    def from_config(cls, cfg: CfgNode) -> WeightSchedule:
        """Reads DISTILL.SCHEDULE, DISTILL.EXPERIMENT and DISTILL.TEACHER.EVERY."""
        schedule, every = cfg.DISTILL.SCHEDULE, cfg.DISTILL.TEACHER.EVERY
        return cls(schedule.WARMUP_ITERS, cfg.DISTILL.EXPERIMENT.DECAY_ITER, schedule.STOP_ITER, every)

    def skips(self, iteration: int) -> bool:
        """Returns True where the losses are left out although they have not stopped."""
        return iteration % self.teacher_every > 0 and not self._stopped(iteration)

    def factor(self, iteration: int) -> float:
        """Returns the factor, in [0, k]."""
        if self._stopped(iteration) or self.skips(iteration):
            return 0.0
        rise = min((iteration + 1) / self.warmup, 1.0) if self.warmup else 1.0
        falling = self.stop and self.decay_from and iteration >= self.decay_from
        fall = (self.stop - iteration) / (self.stop - self.decay_from) if falling else 1.0
        return rise * fall * self.teacher_every

    def _stopped(self, iteration: int) -> bool:
        return self.stop > 0 and iteration >= self.stop
