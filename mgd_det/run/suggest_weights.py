"""Suggest loss weights from a short training, which compares each distillation loss with the task's own."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from fvcore.common.history_buffer import HistoryBuffer
from tabulate import tabulate

from mgd_det.distributed import unwrapped
from mgd_det.engine.rematch import RematchHook
from mgd_det.engine.trainer import Trainer
from mgd_det.modeling.detector import DistilledDetector

logger = logging.getLogger("detectron2." + __name__)

MEASUREMENTS = 40  # of gradients, at most, over the training


class Measured(NamedTuple):
    """Medians over the second half of a short training, for one loss."""

    name: str
    weight: float  # the factor in front of it
    share: float  # its value divided by the sum of the task's losses
    ratio: float | None  # norm of its gradient at its tap divided by the task's; None if not measured

    @property
    def suggested(self) -> float:
        """The weight, to two digits, at which the loss pulls at its tap as strongly as the task.

        If its gradient is not measured, it is the weight at which the loss is as large as the task's losses
        together. It is NaN if the loss was zero, since nothing can be told then.
        """
        compared = self.share if self.ratio is None else self.ratio
        if not (math.isfinite(compared) and compared > 0):
            return math.nan
        return float(f"{self.weight / compared:.2g}")


class _ShortTraining(Trainer):
    """Training without checkpoints, evaluations or files."""

    def build_hooks(self) -> list[HookBase]:
        return [RematchHook(self.cfg, config=None), hooks.LRScheduler()]


def suggest_weights(cfg: CfgNode, iterations: int) -> None:
    """Train as the config says, for a few iterations and in float32, and log which weights that suggests.

    Nothing is written. Every process of a distributed job takes part.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DISTILL.EXACT_RESUME = False
    cfg.DISTILL.STRENGTH, cfg.DISTILL.GRADIENT_PERIOD = 0.0, max(1, iterations // MEASUREMENTS)
    # Factors on the losses would hide their weights.
    for key in cfg.DISTILL.SCHEDULE:
        cfg.DISTILL.SCHEDULE[key] = 0
    cfg.DISTILL.EXPERIMENT.DECAY_ITER, cfg.DISTILL.TEACHER.EVERY = 0, 1
    # In lower precision the task's gradient is lost beside that of a loss which pulls far too strongly.
    cfg.SOLVER.AMP.ENABLED = False
    cfg.freeze()
    for name in ("fvcore", "detectron2"):
        setup_logger(distributed_rank=comm.get_rank(), name=name)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    trainer = _ShortTraining(cfg)
    trainer.resume_or_load(resume=False)
    logger.info("training for %d iterations to compare the losses; nothing will be written", iterations)
    trainer.max_iter = (
        iterations  # set after the scheduler is built, so that the learning rate starts as in the full run
    )
    trainer.train()
    if comm.is_main_process():
        detector = unwrapped(trainer.model)
        assert isinstance(detector, DistilledDetector)
        logger.info(_report(detector, measure(detector, trainer.storage.histories(), iterations), iterations))


def measure(
    detector: DistilledDetector, histories: Mapping[str, HistoryBuffer], iterations: int
) -> dict[str, list[Measured]]:
    """Returns, for every method by name, what a training's scalars say of its losses.

    Args:
        detector: the detector that was trained.
        histories: the history of each scalar, by name.
        iterations: the number of iterations that it was trained for.
    """

    def median(name: str) -> float | None:
        # The first half is left out, unless it has the only measurement: the network knows nothing yet.
        values = histories[name].values() if name in histories else []
        late = [value for value, at in values if at >= iterations // 2] or [value for value, _ in values]
        return statistics.median(late) if late else None

    ours = detector.losses
    task = [name for name in histories if name.startswith("loss_") and name not in ours]
    total = sum(median(name) or 0.0 for name in task)
    found: dict[str, list[Measured]] = {}
    for method_name, method in detector.methods.items():
        found[method_name] = [
            Measured(
                name,
                info.weight,
                (median(name) or 0.0) / total if total else math.nan,
                median(f"{name.removeprefix('loss_')}/gradient_ratio"),
            )
            for name, info in method.losses.items()
        ]
    return found


def _report(detector: DistilledDetector, measured: Mapping[str, list[Measured]], iterations: int) -> str:
    rows = [
        [m.name, f"{m.weight:g}", f"{m.share:.2g}", "-" if m.ratio is None else f"{m.ratio:.2g}", m.suggested]
        for losses in measured.values()
        for m in losses
    ]
    heads = ["loss", "weight", "of the task's losses", "gradient, of the task's", "suggested weight"]
    table = tabulate(rows, heads, disable_numparse=True)
    return (
        f"after {iterations} iterations, medians of the second half:\n{table}\n"
        "With its suggested weight a loss pulls at its tap as strongly as the task does; one whose "
        "gradient could not be measured is as large as the task's losses together. That is where to start "
        "from, not an optimum: compare 4 and 16 times as much with tools/compare.py. To append:\n  "
        + " ".join(_settings(detector, measured))
    )


def _settings(detector: DistilledDetector, measured: Mapping[str, list[Measured]]) -> list[str]:
    """Returns the KEY VALUE pairs, quoted for a shell, of all weights that can be suggested."""
    settings = []
    for method_name, losses in measured.items():
        method = detector.methods[method_name]
        by_key: dict[str, dict[str, list[float]]] = {}  # key -> tap -> suggestions for its losses
        for m in losses:
            taps = by_key.setdefault(method.weight_key(m.name), {})
            taps.setdefault(method.losses[m.name].tap, []).append(m.suggested)
        for key, taps in by_key.items():
            # If several losses share a weight, it is the most cautious of their suggestions.
            weights = [min(suggested) for suggested in taps.values()]
            if all(map(math.isfinite, weights)):
                value = json.dumps(
                    weights if key == "LOSS_WEIGHTS" else min(weights)
                )  # 2.0, not 2: a float's key
                settings.append(f'DISTILL.{method_name.upper()}.{key} "{value}"')
    return settings
