"""The hook that solves the matching during training, and the images that it is solved from."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, Callable

from detectron2.config import CfgNode, configurable
from detectron2.engine import HookBase

from mgd_det.config import check_values
from mgd_det.data.matching_images import MatchingImages
from mgd_det.distributed import sum_over_ranks, unwrapped
from mgd_det.errors import ConfigError
from mgd_det.methods import MatchReport
from mgd_det.modeling.detector import DistilledDetector

from .schedules import UpdateSchedule, WeightSchedule

logger = logging.getLogger("detectron2." + __name__)


class RematchHook(HookBase):
    """Solves the matching at the start and on a schedule, and carries it through checkpoints.

    Register it with any Detectron2 trainer of a :class:`DistilledDetector`, before
    `resume_or_load`: `trainer.register_hooks([RematchHook(cfg)])`. What the methods learn beside the
    student lies in its state, which Detectron2 keeps in the trainer's part of the checkpoint.

    Args:
        images: iteration -> batches of images for the pass before it.
        updates: when to solve again.
        weights: how much the losses count.
        online_every: take statistics from every so many-th training step, and solve from those; 0
            solves from passes.
        online_decay: what earlier statistics count whenever new ones are taken.
        gradient_period: log every so many iterations how the losses' gradients compare with the task's;
            0: never.
    """

    @configurable
    def __init__(
        self,
        *,
        images: Callable[[int], Iterable[list[dict[str, Any]]]],
        updates: UpdateSchedule,
        weights: WeightSchedule,
        online_every: int = 0,
        online_decay: float = 0.98,
        gradient_period: int = 0,
    ) -> None:
        self.images, self.updates, self.weights = images, updates, weights
        self.online_every, self.online_decay = online_every, online_decay
        self.gradient_period = gradient_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_values(cfg)
        update, schedule, experiment = cfg.DISTILL.MATCHING, cfg.DISTILL.SCHEDULE, cfg.DISTILL.EXPERIMENT
        return {
            "images": MatchingImages(cfg),
            "updates": UpdateSchedule(
                update.PERIOD,
                experiment.SLOW_AFTER,
                experiment.SLOW_PERIOD,
                tuple(update.ITERATIONS),
                update.UNTIL,
            ),
            "weights": WeightSchedule(schedule.WARMUP_ITERS, experiment.DECAY_ITER, schedule.STOP_ITER),
            "online_every": update.ONLINE_EVERY if update.MODE == "online" else 0,
            "online_decay": experiment.ONLINE_DECAY,
            "gradient_period": cfg.DISTILL.GRADIENT_PERIOD,
        }

    @property
    def detector(self) -> DistilledDetector:
        model = unwrapped(self.trainer.model)
        if not isinstance(model, DistilledDetector):
            raise ConfigError(
                "MODEL.META_ARCHITECTURE",
                type(model).__name__,
                "RematchHook belongs to a DistilledDetector",
                'Set MODEL.META_ARCHITECTURE "DistilledDetector", or leave the hook out.',
            )
        return model

    def before_train(self) -> None:
        self.detector.prepare()
        if self.trainer.start_iter == 0:
            self.detector.inherit()

    def before_step(self) -> None:
        detector, iteration = self.detector, self.trainer.iter
        if not detector.methods:
            return
        detector.loss_factor = self.weights.factor(iteration)
        for name, info in detector.losses.items():
            self._log(f"{_stem(name)}/weight", info.weight * detector.loss_factor)
        if detector.loss_factor == 0:
            return
        if not all(method.ready for method in detector.methods.values()):
            self._solve(lambda: detector.rematch(self.images(iteration), sum_over_ranks))
        elif iteration > 0 and detector.matching and self.updates.due(iteration):  # at 0 this has been done
            if self.online_every:
                self._solve(detector.solve)
            else:
                self._solve(lambda: detector.rematch(self.images(iteration), sum_over_ranks))
        # Consumed by the step's one forward pass, so that those of other hooks do not count.
        detector.observe_next = self.online_every > 0 and iteration % self.online_every == 0
        detector.measure_next = self.gradient_period > 0 and iteration % self.gradient_period == 0

    def after_step(self) -> None:
        detector = self.detector
        if detector.measured is not None:
            for name, ratio in detector.measured.ratios().items():
                self._log(f"{_stem(name)}/gradient_ratio", ratio)
            detector.measured = None  # and with it this step's graph
        online = self.online_every and self.trainer.iter % self.online_every == 0
        if online and detector.loss_factor:
            for method in detector.matching:
                method.absorb(sum_over_ranks, self.online_decay)

    def _solve(self, solve: Callable[[], list[MatchReport]]) -> None:
        start = time.perf_counter()
        try:
            reports = solve()
        except FloatingPointError as error:
            raise FloatingPointError(f"before iteration {self.trainer.iter}: {error}") from error
        seconds = time.perf_counter() - start
        for report in reports:
            logger.info(
                "matching %s before iteration %d, from %d images: mean cost %.4f, "
                "%.1f%% of teacher channels changed partner",
                report.name,
                self.trainer.iter,
                report.images,
                report.cost,
                100 * report.changed,
            )
            if report.skipped:
                logger.warning(
                    "%s: left out %d images whose features were not finite", report.name, report.skipped
                )
            self._log(f"{report.name}/match_cost", report.cost)
            self._log(f"{report.name}/match_changed", report.changed)
        if reports:
            logger.info("matching solved in %.1f s", seconds)
            self._log("match_seconds", seconds)

    def _log(self, name: str, value: float) -> None:
        self.trainer.storage.put_scalar(name, value, smoothing_hint=False)

    def state_dict(self) -> dict[str, Any]:
        return self.detector.distill_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_distill_state(state)


def _stem(loss_name: str) -> str:
    # Detectron2 prints every scalar with "loss" in its name to the terminal.
    return loss_name[len("loss_") :]
