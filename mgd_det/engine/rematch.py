"""The hook with which any Detectron2 trainer distils."""

from __future__ import annotations

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, configurable
from detectron2.engine import HookBase, TrainerBase
from detectron2.utils import comm

from mgd_det.config import check_values, save_student_config
from mgd_det.data.mappers import Mapper
from mgd_det.data.matching_images import MatchingImages
from mgd_det.detectron2_types import State
from mgd_det.distributed import unwrapped
from mgd_det.errors import ConfigError
from mgd_det.modeling.detector import DistilledDetector
from mgd_det.modeling.step_plan import StepPlan

from .automatic_weights import AutomaticWeights
from .distill_state import DistillState, start_afresh_if_lost, stores_hooks
from .first_batch import FirstBatchHook
from .loss_logging import log_gradient_ratios, log_weights
from .matching import MatchingSchedule
from .schedules import WeightSchedule, due
from .state_keys import MATCHING_STATE


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
    student lies in its state, which Detectron2 keeps in the trainer's part of the checkpoint. A checkpointer
    whose trainer does not store its hooks stores this one by itself.

    Each of its parts can be called from a loop of one's own instead, see docs/examples/plain_loop.py.

    Args:
        matching: solves the matchings when they are due.
        weights: how much the losses count in each iteration.
        automatic: finds the weights of single losses; None leaves them as they are given.
        gradient_period: log every `gradient_period` iterations how the losses' gradients compare with the
            task's; 0: never.
        config: the run's config, from which `student_config.yaml` is written to OUTPUT_DIR; None writes none.
        mapper: beside a config, the function that reads a record of the training set for the matching.
            Without one it is the test-time mapper of the trainer's own pipeline, see
            :func:`~mgd_det.data.mappers.test_time_mapper`.
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
        config: CfgNode | None = None,
    ) -> None:
        self.matching, self.weights, self.gradient_period = matching, weights, gradient_period
        self.automatic = automatic or AutomaticWeights(0)
        self.config = config
        self.first_batch = FirstBatchHook()
        self._plan = StepPlan()  # of the latest step
        self._loaded = False

    @classmethod
    def from_config(cls, cfg: CfgNode, mapper: Mapper | None = None) -> dict[str, object]:
        check_values(cfg)
        return {
            "config": cfg,
            "matching": MatchingSchedule.from_config(cfg, mapper),
            "weights": WeightSchedule.from_config(cfg),
            "automatic": AutomaticWeights.from_config(cfg),
            "gradient_period": cfg.DISTILL.GRADIENT_PERIOD,
        }

    @property
    def trainer(self) -> TrainerBase:
        """The trainer, which Detectron2 sets when the hook is registered."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: TrainerBase) -> None:
        self._trainer = trainer
        # Now, because a resume comes before the training, which knows if the trainer stores its hooks.
        self._join(getattr(trainer, "checkpointer", None))

    def _join(self, checkpointer: DetectionCheckpointer | None) -> None:
        """Have a checkpointer store this hook's state, unless it does."""
        if checkpointer is not None and MATCHING_STATE not in checkpointer.checkpointables:
            checkpointer.add_checkpointable(MATCHING_STATE, self)

    @property
    def detector(self) -> DistilledDetector:
        """The trainer's model."""
        return detector_of(self.trainer)

    def plan(self, iteration: int) -> StepPlan:
        """Returns what the detector does in an iteration."""
        factor = self.weights.factor(iteration)
        if self.weights.skips(iteration):
            return StepPlan(factor, skipped=True)
        every = self.weights.teacher_every
        measures = due(self.gradient_period, iteration, every) or self.automatic.measures(iteration)
        return StepPlan(
            factor,
            loss_scales=self.automatic.scales(self.detector.losses),
            collect_statistics=factor > 0 and self.matching.collects(iteration),
            measure_gradients=factor > 0 and measures,
        )

    def before_train(self) -> None:
        self.detector.prepare()
        if self.trainer.start_iter == 0:
            self.detector.inherit()
        start_afresh_if_lost(self.detector, self.automatic, self.trainer.start_iter, loaded=self._loaded)
        checkpointer = getattr(self.trainer, "checkpointer", None)
        self._join(checkpointer)  # one that was made after the hook was registered
        if checkpointer is not None and stores_hooks(checkpointer):
            del checkpointer.checkpointables[MATCHING_STATE]
        images = self.matching.images
        if self.detector.matching and isinstance(images, MatchingImages):
            trainer = self.trainer
            images.read_as(getattr(trainer, "data_loader", None), getattr(trainer, "build_test_loader", None))
        if self.config is not None and comm.is_main_process():
            save_student_config(self.config)

    def before_step(self) -> None:
        detector, iteration = self.detector, self.trainer.iter
        if not detector.methods:
            return
        self._plan = plan = self.plan(iteration)
        if not plan.skipped:
            log_weights(detector.losses, plan)
        if not plan.stopped:
            self.matching.solve_if_due(detector, iteration)
        if plan.loss_factor > 0:
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
        return DistillState(self.detector, self.automatic).state_dict()

    def load_state_dict(self, state: State) -> None:
        self._loaded = True
        DistillState(self.detector, self.automatic).load_state_dict(state)
