"""Solving the matching in the course of a training, under a trainer's hook or in a loop of one's own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Callable

from detectron2.config import CfgNode
from detectron2.utils.events import get_event_storage

from mgd_det.data.mappers import Mapper
from mgd_det.data.matching_images import MatchingImages
from mgd_det.detectron2_types import BatchedInputs
from mgd_det.distributed import sum_over_ranks
from mgd_det.methods import MatchReport
from mgd_det.modeling.detector import DistilledDetector

from .schedules import UpdateSchedule, due

logger = logging.getLogger("detectron2." + __name__)


class MatchingSchedule:
    """Solves the matchings of a detector's methods when they are due, and logs what that brought.

    Statistics are summed over all processes. Scalars go to Detectron2's event storage.

    Args:
        images: iteration -> batches of images for the pass before it.
        updates: iterations before which to solve again.
        online_every: take statistics from every `online_every`-th training step, and solve from those; 0
            solves from passes over images.
        online_decay: factor on earlier statistics whenever new ones are taken.
        teacher_every: the teacher runs in every so many training steps only.
    """

    def __init__(
        self,
        images: Callable[[int], Iterable[BatchedInputs]],
        updates: UpdateSchedule,
        online_every: int = 0,
        online_decay: float = 0.98,
        teacher_every: int = 1,
    ) -> None:
        self.images, self.updates, self.teacher_every = images, updates, teacher_every
        self.online_every, self.online_decay = online_every, online_decay

    @classmethod
    def from_config(cls, cfg: CfgNode, mapper: Mapper | None = None) -> MatchingSchedule:
        """Reads DISTILL.MATCHING, EXPERIMENT and TEACHER.EVERY; the images are the training set's.

        Args:
            cfg: a config with this project's keys.
            mapper: reads the images, as :class:`~mgd_det.data.matching_images.MatchingImages` takes it.
        """
        matching = cfg.DISTILL.MATCHING
        return cls(
            MatchingImages(cfg, mapper),
            UpdateSchedule.from_config(cfg),
            matching.ONLINE_EVERY if matching.MODE == "online" else 0,
            cfg.DISTILL.EXPERIMENT.ONLINE_DECAY,
            cfg.DISTILL.TEACHER.EVERY,
        )

    def solve_if_due(self, detector: DistilledDetector, iteration: int) -> list[MatchReport]:
        """Solve the matchings before an iteration, if a method has none yet or an update is due.

        Raises:
            FloatingPointError: the features are not finite in any of the images.
        """
        first = not detector.ready
        if not first and not (iteration > 0 and detector.matching and self.updates.due(iteration)):
            return []
        start = time.perf_counter()
        try:
            if self.online_every and not first:
                reports = detector.solve()
            else:
                reports = detector.rematch(self.images(iteration), sum_over_ranks)
        except FloatingPointError as error:
            raise FloatingPointError(f"before iteration {iteration}: {error}") from error
        log_matchings(reports, iteration, time.perf_counter() - start)
        return reports

    def collects(self, iteration: int) -> bool:
        """Returns True where the features of a step with the teacher go into the statistics."""
        return due(self.online_every, iteration, self.teacher_every)

    def absorb(self, detector: DistilledDetector) -> None:
        """Take what a step that collected has observed, in all processes, into the statistics."""
        for method in detector.matching:
            method.absorb(sum_over_ranks, self.online_decay)


def log_matchings(reports: Sequence[MatchReport], iteration: int, seconds: float) -> None:
    """Log what solving before an iteration brought, and put it into Detectron2's event storage."""
    storage = get_event_storage()
    for report in reports:
        logger.info(
            "matching %s before iteration %d, from %d images: mean cost %.4f, "
            "%.1f%% of teacher channels changed partner",
            report.name,
            iteration,
            report.images,
            report.cost,
            100 * report.changed,
        )
        if report.skipped:
            logger.warning(
                "%s: left out %d images whose features were not finite", report.name, report.skipped
            )
        storage.put_scalar(f"{report.name}/match_cost", report.cost, smoothing_hint=False)
        storage.put_scalar(f"{report.name}/match_changed", report.changed, smoothing_hint=False)
    if reports:
        logger.info("matching solved in %.1f s", seconds)
        storage.put_scalar("match_seconds", seconds, smoothing_hint=False)
