"""The hook with which any Detectron2 trainer distils."""

from __future__ import annotations

from detectron2.config import CfgNode, configurable
from detectron2.engine import HookBase, TrainerBase

from mgd_det.config import check_values
from mgd_det.detectron2_types import State
from mgd_det.distributed import unwrapped
from mgd_det.errors import ConfigError
from mgd_det.modeling.detector import DistilledDetector
from mgd_det.modeling.step_plan import StepPlan

from .automatic_weights import AutomaticWeights
from .first_batch import FirstBatchHook
from .loss_logging import log_gradient_ratios, log_weights
from .matching import MatchingSchedule
from .schedules import WeightSchedule, due
from .state_keys import MATCHING_STATE

AUTOMATIC_KEY = "automatic_weights"  # key of their state, beside the methods' names


def detector_of(trainer: TrainerBase) -> DistilledDetector:
    """Returns the detector that a trainer trains.

    Raises:
        ConfigError: it is a stock one.
    """
    model = unwrapped(trainer.model)
    if not isinstance(model, DistilledDetector):
        raise ConfigError(
            "MODEL.META_ARCHITECTURE",
            type(model).__name__,
            "RematchHook belongs to a DistilledDetector",
            "Have build_model return mgd_det.wrap(model, cfg), or leave the hook out.",
        )
    return model


class RematchHook(HookBase):
    """Solves the matching at the start and on a schedule, and carries it through checkpoints.

    Register it with any Detectron2 trainer of a :class:`DistilledDetector`, before
    `resume_or_load`: `trainer.register_hooks([RematchHook(cfg)])`. What the methods learn beside the
    student lies in its state, which Detectron2 keeps in the trainer's part of the checkpoint.

    Each of its parts can be called from a loop of one's own instead, see docs/examples/plain_loop.py.

    Args:
        matching: solves the matchings when they are due.
        weights: how much the losses count in each iteration.
        automatic: finds the weights of single losses; None leaves them as they are given.
        gradient_period: log every `gradient_period` iterations how the losses' gradients compare with the
            task's; 0: never.
    """

    __qualname__ = MATCHING_STATE

    @configurable
    def __init__(
        self,
        *,
        matching: MatchingSchedule,
        weights: WeightSchedule,
        automatic: AutomaticWeights | None = None,
        gradient_period: int = 0,
    ) -> None:
        self.matching, self.weights, self.gradient_period = matching, weights, gradient_period
        self.automatic = automatic or AutomaticWeights(0)
        self.first_batch = FirstBatchHook()
        self._plan = StepPlan()  # of the latest step

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        check_values(cfg)
        return {
            "matching": MatchingSchedule.from_config(cfg),
            "weights": WeightSchedule.from_config(cfg),
            "automatic": AutomaticWeights.from_config(cfg),
            "gradient_period": cfg.DISTILL.GRADIENT_PERIOD,
        }

    @property
    def detector(self) -> DistilledDetector:
        """The trainer's model."""
        return detector_of(self.trainer)

    def plan(self, iteration: int) -> StepPlan:
        """Returns what the detector does in an iteration."""
        factor = self.weights.factor(iteration)
        measures = due(self.gradient_period, iteration) or self.automatic.measures(iteration)
        return StepPlan(
            factor,
            self.automatic.scales(self.detector.losses),
            collect_statistics=factor > 0 and self.matching.collects(iteration),
            measure_gradients=factor > 0 and measures,
        )

    def before_train(self) -> None:
        self.detector.prepare()
        if self.trainer.start_iter == 0:
            self.detector.inherit()

    def before_step(self) -> None:
        detector, iteration = self.detector, self.trainer.iter
        if not detector.methods:
            return
        self._plan = plan = self.plan(iteration)
        log_weights(detector.losses, plan)
        if plan.loss_factor > 0:
            self.matching.solve_if_due(detector, iteration)
            self.first_batch.watch(detector)
        detector.plan_step(plan)

    def after_step(self) -> None:
        detector, plan = self.detector, self._plan
        if plan.measure_gradients:
            ratios = detector.take_gradient_ratios()
            log_gradient_ratios(ratios, plan)
            if self.automatic.measures(self.trainer.iter):
                self.automatic.take(ratios, detector.losses)
        if plan.collect_statistics:
            self.matching.absorb(detector)

    def state_dict(self) -> State:
        return {**self.detector.distill_state(), AUTOMATIC_KEY: self.automatic.state_dict()}

    def load_state_dict(self, state: State) -> None:
        state = dict(state)
        automatic = state.pop(AUTOMATIC_KEY, None)  # checkpoints of before there were any have none
        self.detector.load_distill_state(state)
        if automatic and self.automatic.strength:
            self.automatic.load_state_dict(automatic)
