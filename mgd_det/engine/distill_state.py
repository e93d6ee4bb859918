"""The state of the methods, as an object for the checkpoints of any trainer or loop."""

from __future__ import annotations

import logging

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import TrainerBase
from torch import nn

from mgd_det.detectron2_types import State
from mgd_det.distributed import unwrapped
from mgd_det.modeling.detector import DistilledDetector

from .automatic_weights import AutomaticWeights
from .state_keys import MATCHING_STATE

AUTOMATIC_KEY = "automatic_weights"  # key of their state, beside the methods' names

logger = logging.getLogger("detectron2." + __name__)


class DistillState:
    """Matchings, adapters and found weights of a detector, as an object that any checkpointer can store.

    It is for loops of one's own, since :class:`~.rematch.RematchHook` does the same in a trainer::

        state = DistillState(model)
        checkpointer = DetectionCheckpointer(model, folder, distill=state, optimizer=optimizer)

    Args:
        model: a :class:`DistilledDetector`, in DistributedDataParallel or not.
        automatic: what finds the weights of its losses, if anything does.
    """

    def __init__(self, model: nn.Module, automatic: AutomaticWeights | None = None) -> None:
        detector = unwrapped(model)
        assert isinstance(detector, DistilledDetector)
        self.detector = detector
        self.automatic = automatic or AutomaticWeights(0)
        self._loaded = False

    def state_dict(self) -> State:
        state = self.detector.distill_state()
        # Without methods it is empty, by which a resumed run knows that the earlier one had none.
        return {**state, AUTOMATIC_KEY: self.automatic.state_dict()} if self.detector.methods else state

    def load_state_dict(self, state: State) -> None:
        self._loaded = True
        state = dict(state)
        automatic = state.pop(AUTOMATIC_KEY, None)  # checkpoints of before there were any have none
        kept = self.detector.load_distill_state(state)
        if automatic:
            methods = (self.detector.methods[name] for name in kept)
            losses = {name: loss for method in methods for name, loss in method.losses.items()}
            self.automatic.load_state_dict(automatic, losses)
        self.automatic.measure_anew(self.detector.losses)

    def check_resumed(self, start_iter: int) -> None:
        """Start afresh, with a warning, if a run goes on from an iteration without a state of before."""
        start_afresh_if_lost(self.detector, self.automatic, start_iter, loaded=self._loaded)


def start_afresh_if_lost(
    detector: DistilledDetector, automatic: AutomaticWeights, start_iter: int, *, loaded: bool
) -> None:
    """Warn if a run goes on from an iteration and no state of its distillation has been loaded.

    The automatic weights are then found as at the start of a run.
    """
    if start_iter > 0 and detector.methods and not loaded:
        automatic.measure_anew(detector.losses)
        logger.warning(
            "the run goes on at iteration %d, but its checkpoint holds no state of the distillation: the "
            "matching is solved anew, and what the methods train beside the student starts afresh. Register "
            "RematchHook before resume_or_load, or give the checkpointer of your loop a DistillState",
            start_iter,
        )


def stores_hooks(checkpointer: DetectionCheckpointer) -> bool:
    """Returns True if a trainer among a checkpointer's objects stores the state of its hooks."""
    trainers = [item for item in checkpointer.checkpointables.values() if isinstance(item, TrainerBase)]
    return any(MATCHING_STATE in trainer.state_dict().get("hooks", {}) for trainer in trainers)
