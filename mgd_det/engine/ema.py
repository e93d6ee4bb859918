"""A moving average of the student's weights, which is evaluated and saved beside the weights themselves."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mgd_det.checkpoint.checkpointer import WeightsWriter
from mgd_det.detectron2_types import State
from mgd_det.modeling.wrapping import student_of

from .schedules import due
from .state_keys import EMA_STATE

logger = logging.getLogger("detectron2." + __name__)


class EMAHook(HookBase):
    """Keeps an exponential moving average of the student's parameters, as torch's `AveragedModel` does.

    Buffers, such as the statistics of batch norms, are copied. The training is the same with and without the
    hook, and the average the same in all processes. It is written as `model_0004999_ema.pth` beside
    `model_0004999.pth` and as `model_final_ema.pth`, files of a stock student, and it goes on from the
    trainer's checkpoint when a run is resumed.

    Register it before the hook that writes checkpoints, so that these hold the average of the same step::

        def build_hooks(self):
            return [EMAHook(self.cfg, model=self.model), *super().build_hooks()]

    Args:
        model: the distilled or stock detector that is trained.
        decay: the share of the average that stays in a step. The average is mostly over the last
            1 / (1 - decay) steps.
        output_dir: where the files are written.
        period: iterations between two of them.
    """

    __qualname__ = EMA_STATE

    @configurable
    def __init__(self, *, model: nn.Module, decay: float, output_dir: str, period: int) -> None:
        self.student = student_of(model)
        self.average = AveragedModel(self.student, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.writer = WeightsWriter(self.model, output_dir)
        self.period = period

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, object]:
        return {
            "model": model,
            "decay": cfg.SOLVER.EMA.DECAY,
            "output_dir": cfg.OUTPUT_DIR,
            "period": cfg.SOLVER.CHECKPOINT_PERIOD,
        }

    @property
    def model(self) -> nn.Module:
        """The student with the average as its weights."""
        return self.average.module

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Copy the student's buffers now; for when they have changed since the step."""
        for own, buffer in zip(self.model.buffers(), self.student.buffers()):
            own.copy_(buffer)

    def before_train(self) -> None:
        if self.trainer.start_iter and not self.average.n_averaged:
            logger.warning("SOLVER.EMA: the checkpoint holds no average, so it begins with the weights there")
            self.average.update_parameters(self.student)

    def before_step(self) -> None:
        # Not before: the `before_train` of another hook may let the student inherit weights.
        if not self.average.n_averaged:
            self.average.update_parameters(self.student)

    def after_step(self) -> None:
        self.average.update_parameters(self.student)
        iteration = self.trainer.iter
        if due(self.period, iteration + 1):
            self.writer.save(f"model_{iteration:07d}_ema", iteration=iteration)
        if iteration + 1 >= self.trainer.max_iter:
            self.writer.save("model_final_ema", iteration=iteration)

    def state_dict(self) -> State:
        return self.average.state_dict()

    def load_state_dict(self, state: State) -> None:
        self.average.load_state_dict(state)
