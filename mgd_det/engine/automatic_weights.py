"""Loss weights that are measured instead of chosen, so that all losses pull equally strongly."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any, Callable

import torch
from detectron2.config import CfgNode
from torch import Tensor

from mgd_det.detectron2_types import State
from mgd_det.distributed import sum_over_ranks
from mgd_det.methods import LossInfo

from .schedules import due

logger = logging.getLogger("detectron2." + __name__)

FIRST = 10  # measurements in consecutive iterations, at the start
WINDOW = 4  # measurements over which ratios are smoothed


class AutomaticWeights:
    """Scales every distillation loss so that its gradient is `strength` times as large as the task's.

    The gradients are compared at the loss's tap, see `DistilledDetector.take_gradient_ratios`. They are
    measured in the first iterations and every `period` iterations from then on, and smoothed in their
    logarithm. A loss counts nothing before its first measurement. Iterations without the teacher do not
    count.

    Args:
        strength: the ratio of the two gradients' norms; 0 leaves the weights as they are given.
        period: iterations from one measurement to the next; 0 measures in the first iterations alone.
        until: iteration from which the weights stay as they are; 0: no end.
        teacher_every: the teacher runs in every so many iterations only.
    """

    def __init__(self, strength: float, period: int = 0, until: int = 0, teacher_every: int = 1) -> None:
        self.strength, self.period, self.until = strength, period, until
        self.teacher_every = teacher_every
        self._left = FIRST if strength else 0
        # Number of measurements, and the smoothed logarithm of the ratio at weight 1, by loss.
        self._measured: dict[str, tuple[int, float]] = {}
        self._known: list[str] = []  # the losses that measurements were taken of
        self._late = False  # whether the first measurements are of a resumed run, also after `until`

    @classmethod
    def from_config(cls, cfg: CfgNode) -> AutomaticWeights:
        """Reads DISTILL.STRENGTH, its end, DISTILL.GRADIENT_PERIOD and DISTILL.TEACHER.EVERY."""
        node = cfg.DISTILL
        return cls(node.STRENGTH, node.GRADIENT_PERIOD, node.STRENGTH_UNTIL, node.TEACHER.EVERY)

    def measures(self, iteration: int) -> bool:
        """Returns True where the gradients of an iteration, in which the teacher runs, are to be compared."""
        if not self.strength or (self.until and iteration >= self.until and not self._late):
            return False
        return self._left > 0 or due(self.period, iteration, self.teacher_every)

    def scales(self, losses: Mapping[str, LossInfo]) -> dict[str, float]:
        """Returns the factor of every loss, by name; empty where the weights stay as they are given."""
        if not self.strength:
            return {}
        scales = dict.fromkeys(losses, 0.0)
        for name, loss in losses.items():
            if name in self._measured and loss.weight:
                scales[name] = self.strength / (math.exp(self._measured[name][1]) * loss.weight)
        return scales

    def take(
        self,
        ratios: Mapping[str, float],
        losses: Mapping[str, LossInfo],
        sum_over_ranks: Callable[[Tensor], None] = sum_over_ranks,
    ) -> None:
        """Take up a measurement, of all processes together.

        Args:
            ratios: by loss, as `DistilledDetector.take_gradient_ratios` gives them in this process.
            losses: all of the detector's.
            sum_over_ranks: replaces a tensor, in place, by its sum over all processes.
        """
        given = [(ratios.get(name, 0.0), loss.weight) for name, loss in losses.items()]
        logs = [
            math.log(ratio / weight) if weight and 0 < ratio < math.inf else math.nan
            for ratio, weight in given
        ]
        self._known = _weighted(losses)
        found = torch.tensor([logs, [1.0] * len(logs)], dtype=torch.float64)
        found[:, found[0].isnan()] = 0
        sum_over_ranks(found)
        for name, total, count in zip(losses, *found.tolist()):
            if count:
                number, before = self._measured.get(name, (0, 0.0))
                number = min(number + 1, WINDOW)
                self._measured[name] = number, before + (total / count - before) / number
        if self._left:
            self._left -= 1
            if not self._left:
                self._late = False
                without = [
                    name for name, loss in losses.items() if loss.weight and name not in self._measured
                ]
                if without:
                    logger.warning(
                        "DISTILL.STRENGTH: no gradient could be measured of %s, so they count nothing",
                        ", ".join(without),
                    )
                weights = {name: losses[name].weight * scale for name, scale in self.scales(losses).items()}
                logger.info(
                    "DISTILL.STRENGTH %g gives the weights %s",
                    self.strength,
                    ", ".join(f"{name} {weight:.3g}" for name, weight in weights.items()),
                )

    def state_dict(self) -> State:
        """Returns what a resumed run needs: plain numbers by name."""
        measured = {name: list(pair) for name, pair in self._measured.items()}
        return {"left": self._left, "late": self._late, "known": self._known, "at_weight_1": measured}

    def load_state_dict(self, state: Mapping[str, Any], losses: Mapping[str, LossInfo]) -> None:
        """Take up the state of an earlier run.

        Args:
            state: as of :meth:`state_dict`.
            losses: those that this run has in common with it; the first measurements are made again if there
                are others.
        """
        measured, known = state.get("at_weight_1"), state.get("known", ())
        if measured is None:  # an earlier version's, which holds the ratios at the weights of its run
            weights = {name: losses[name].weight for name in _weighted(losses)}
            measured = {
                name: (number, log - math.log(weights[name]))
                for name, (number, log) in state["measured"].items()
                if name in weights
            }
            known = measured
        self._measured = {
            name: (int(number), float(log)) for name, (number, log) in measured.items() if name in losses
        }
        self._known = [name for name in known if name in losses]
        self._left, self._late = int(state["left"]), bool(state.get("late", False))

    def measure_anew(self, losses: Mapping[str, LossInfo]) -> None:
        """Make the first measurements again if there are losses of which none was taken."""
        if self.strength and not set(_weighted(losses)) <= set(self._known):
            self._left, self._late = FIRST, True


def _weighted(losses: Mapping[str, LossInfo]) -> list[str]:
    """Returns the names of the losses that count, which alone have a gradient to measure."""
    return [name for name, loss in losses.items() if loss.weight]
