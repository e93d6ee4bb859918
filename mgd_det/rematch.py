"""The hook that solves the matching during training, and the images that it is solved from."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, Callable

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from .detector import DistilledDetector
from .errors import ConfigError

logger = logging.getLogger("detectron2." + __name__)


class UpdateSchedule:
    """When to solve again: every `period` iterations, every `slow_period` after `slow_after`.

    A period of 0 means never.
    """

    def __init__(self, period: int, slow_after: int, slow_period: int) -> None:
        self.period, self.slow_after, self.slow_period = period, slow_after, slow_period

    def due(self, iteration: int) -> bool:
        """Whether the matching is solved before this iteration; always at 0."""
        period = self.period if iteration <= self.slow_after else self.slow_period
        return iteration == 0 or (period > 0 and iteration % period == 0)


class MatchingImages:
    """Training images for matching passes: of their own, never taken from the training batches.

    Every pass draws `num_images` of the training set, the same whatever the number of processes, and
    reads them without augmentation; each process gets its share.

    Args:
        cfg: a config; its training sets, test-time image size and loader settings are used.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self._images: list[dict[str, Any]] = []

    def __call__(self, iteration: int) -> Iterable[list[dict[str, Any]]]:
        """Batches for the pass before an iteration: a function of SEED and the iteration alone."""
        if not self._images:  # read once, without annotations, when first needed
            dicts = get_detection_dataset_dicts(self.cfg.DATASETS.TRAIN, filter_empty=False)
            keep = ("file_name", "image_id", "height", "width")
            self._images = [{k: d[k] for k in keep if k in d} for d in dicts]
        generator = torch.Generator().manual_seed(max(self.cfg.SEED, 0) + iteration)
        order = torch.randperm(len(self._images), generator=generator)
        drawn = [self._images[i] for i in order[: self.cfg.DISTILL.MGD.UPDATE.NUM_IMAGES]]
        # Neighbours of one shape leave little padding to compute.
        drawn.sort(key=lambda image: image.get("width", 1) / image.get("height", 1))
        world_size = comm.get_world_size()
        if len(drawn) < world_size:
            raise ConfigError(
                "DISTILL.MGD.UPDATE.NUM_IMAGES",
                self.cfg.DISTILL.MGD.UPDATE.NUM_IMAGES,
                f"{len(drawn)} images do not go round {world_size} processes",
                "Give at least one image for each process, and a training set that has them.",
            )
        share = drawn[comm.get_rank() :: world_size]
        dataset = MapDataset(DatasetFromList(share, copy=False), DatasetMapper(self.cfg, False))
        return DataLoader(
            dataset,
            batch_size=max(self.cfg.SOLVER.IMS_PER_BATCH // world_size, 1),
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            collate_fn=trivial_batch_collator,
            generator=generator,
        )


class RematchHook(HookBase):
    """Solves the matching at the start and on a schedule, and carries it through checkpoints.

    Register it with any Detectron2 trainer of a :class:`DistilledDetector`, before
    `resume_or_load`: `trainer.register_hooks([RematchHook(cfg)])`. What the methods learn beside the
    student lies in its state, which Detectron2 keeps in the trainer's part of the checkpoint.

    Args:
        images: iteration -> batches of images for the pass before it.
        schedule: when to solve again.
    """

    @configurable
    def __init__(
        self, *, images: Callable[[int], Iterable[list[dict[str, Any]]]], schedule: UpdateSchedule
    ) -> None:
        self.images, self.schedule = images, schedule

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        update = cfg.DISTILL.MGD.UPDATE
        for key in ("PERIOD", "SLOW_AFTER", "SLOW_PERIOD", "NUM_IMAGES"):
            least = 1 if key == "NUM_IMAGES" else 0
            if update[key] < least:
                raise ConfigError(
                    f"DISTILL.MGD.UPDATE.{key}",
                    update[key],
                    f"less than {least}",
                    f"Give a number of at least {least}.",
                )
        schedule = UpdateSchedule(update.PERIOD, update.SLOW_AFTER, update.SLOW_PERIOD)
        return {"images": MatchingImages(cfg), "schedule": schedule}

    @property
    def detector(self) -> DistilledDetector:
        model = self.trainer.model
        if isinstance(model, DistributedDataParallel):
            model = model.module
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

    def before_step(self) -> None:
        detector = self.detector
        matched = all(method.ready for method in detector.methods.values())
        if detector.methods and (not matched or self.schedule.due(self.trainer.iter)):
            self._rematch(detector)

    def _rematch(self, detector: DistilledDetector) -> None:
        start = time.perf_counter()
        reports = detector.rematch(self.images(self.trainer.iter), sum_over_ranks)
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
            self.trainer.storage.put_scalar(f"{report.name}/match_cost", report.cost, False)
            self.trainer.storage.put_scalar(f"{report.name}/match_changed", report.changed, False)
        if reports:
            logger.info("matching solved in %.1f s", seconds)
            self.trainer.storage.put_scalar("match_seconds", seconds, False)

    def state_dict(self) -> dict[str, Any]:
        return self.detector.distill_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.detector.load_distill_state(state)


def sum_over_ranks(tensor: Tensor) -> None:
    """Replace a tensor, in place, by its sum over all processes."""
    if comm.get_world_size() > 1:
        dist.all_reduce(tensor)
