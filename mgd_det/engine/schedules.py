"""Functions of the iteration: when something is due, and how much the distillation losses count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode

from mgd_det.errors import ConfigError


def due(period: int, iteration: int) -> bool:
    """Returns True in every `period`-th iteration, from 0; a period of 0 means never."""
    return period > 0 and iteration % period == 0


@dataclass(frozen=True)
class UpdateSchedule:
    """Says before which iterations the matching is solved; it is solved before the first one in any case.

    Args:
        period: solve every `period` iterations; 0: never again.
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
        return due(self.period if iteration <= self.slow_after else self.slow_period, iteration)


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

    @classmethod
    def from_config(cls, cfg: CfgNode) -> WeightSchedule:
        """Reads DISTILL.SCHEDULE and DISTILL.EXPERIMENT."""
        schedule = cfg.DISTILL.SCHEDULE
        return cls(schedule.WARMUP_ITERS, cfg.DISTILL.EXPERIMENT.DECAY_ITER, schedule.STOP_ITER)

    def factor(self, iteration: int) -> float:
        """Returns the factor, in [0, 1]."""
        if self.stop and iteration >= self.stop:
            return 0.0
        rise = min((iteration + 1) / self.warmup, 1.0) if self.warmup else 1.0
        falling = self.stop and self.decay_from and iteration >= self.decay_from
        fall = (self.stop - iteration) / (self.stop - self.decay_from) if falling else 1.0
        return rise * fall


def check_schedules(cfg: CfgNode) -> None:
    """Check the keys that the schedules are read from.

    Raises:
        ConfigError: a value that makes no sense.
    """
    matching, schedule, experiment = cfg.DISTILL.MATCHING, cfg.DISTILL.SCHEDULE, cfg.DISTILL.EXPERIMENT
    if matching.MODE not in ("pass", "online"):
        raise ConfigError("DISTILL.MATCHING.MODE", matching.MODE, "unknown", 'Choose "pass" or "online".')
    if not 0 < experiment.ONLINE_DECAY <= 1:
        key = "DISTILL.EXPERIMENT.ONLINE_DECAY"
        raise ConfigError(key, experiment.ONLINE_DECAY, "not in (0, 1]", "Give a number like 0.98.")
    if not all(isinstance(i, int) for i in matching.ITERATIONS):
        key, remedy = "DISTILL.MATCHING.ITERATIONS", "Give a list like [5000, 10000]."
        raise ConfigError(key, list(matching.ITERATIONS), "not all are whole numbers", remedy)
    for node, keys, minimum in (
        ("MATCHING", ("NUM_IMAGES", "ONLINE_EVERY"), 1),
        ("MATCHING", ("PERIOD", "UNTIL"), 0),
        ("EXPERIMENT", ("SLOW_AFTER", "SLOW_PERIOD", "DECAY_ITER"), 0),
        ("SCHEDULE", tuple(schedule), 0),
    ):
        for key in keys:
            _check_at_least(f"DISTILL.{node}.{key}", cfg.DISTILL[node][key], minimum)
    _check_at_least("DISTILL.GRADIENT_PERIOD", cfg.DISTILL.GRADIENT_PERIOD, 0)
    if experiment.DECAY_ITER and not schedule.STOP_ITER > experiment.DECAY_ITER:
        raise ConfigError(
            "DISTILL.EXPERIMENT.DECAY_ITER",
            experiment.DECAY_ITER,
            f"the fall has no end behind it: DISTILL.SCHEDULE.STOP_ITER is {schedule.STOP_ITER}",
            "Set STOP_ITER to the iteration at which the losses reach 0.",
        )


def _check_at_least(key: str, value: float, minimum: int) -> None:
    if value < minimum:
        raise ConfigError(key, value, f"less than {minimum}", f"Give a number of at least {minimum}.")
