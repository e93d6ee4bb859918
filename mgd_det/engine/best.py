"""The weights of the best evaluation so far."""

from __future__ import annotations

import logging
import os

import torch
from detectron2.engine.hooks import BestCheckpointer
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from mgd_det.checkpoint.checkpointer import WeightsWriter

logger = logging.getLogger("detectron2." + __name__)

NAME = "model_best"


class BestHook(BestCheckpointer):
    """Writes `model_best.pth` after an evaluation that is better than all before it, also across resumes.

    The file holds the weights, the metric, its value and its iteration. No run resumes from it:
    `last_checkpoint` stays as it is. A resumed run compares with the file that it finds, since the last
    checkpoint was written before the evaluation of the same iteration. Register it in all processes, after
    the hook that evaluates.

    Args:
        eval_period: iterations between two evaluations.
        writer: writes the weights that are evaluated.
        metric: name of the scalar, such as "bbox/AP".
        mode: "max" or "min".
    """

    def __init__(self, eval_period: int, writer: WeightsWriter, metric: str, mode: str = "max") -> None:
        super().__init__(eval_period, self, metric, mode, NAME)  # it writes through `save`
        self.writer, self.metric = writer, metric

    def save(self, name: str, *, iteration: int) -> None:
        """Write the weights together with the latest value of the metric."""
        value, _ = self.trainer.storage.latest()[self.metric]
        iteration = min(iteration, self.trainer.max_iter - 1)  # the last evaluation's counts one more
        self.writer.save(name, iteration=iteration, metric=self.metric, value=float(value))

    def before_train(self) -> None:
        path = os.path.join(self.writer.save_dir, f"{NAME}.pth")
        if not (comm.is_main_process() and self.trainer.start_iter and PathManager.isfile(path)):
            return
        found = torch.load(PathManager.get_local_path(path), map_location="cpu", weights_only=True)
        if found.get("metric") == self.metric:
            self.best_metric, self.best_iter = found["value"], found["iteration"]
            found = (self.metric, self.best_metric, self.best_iter)
            logger.info("the best %s so far is %.4f, of iteration %d", *found)

    def after_step(self) -> None:
        if comm.is_main_process():  # which alone knows the results
            super().after_step()

    def after_train(self) -> None:
        if comm.is_main_process():
            super().after_train()
