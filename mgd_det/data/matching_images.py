"""The training images that matchings are solved from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import partial
from typing import Callable

import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.data.common import DatasetFromList, MapDataset
from detectron2.utils import comm
from torch.utils.data import DataLoader

from mgd_det.errors import ConfigError

from .coco_schema import JsonObject
from .mappers import Mapper, needed, stock_mapper, test_time_mapper
from .readable import NamingMapper


class MatchingImages:
    """Gives training images for matching passes, which are never taken from the training batches.

    Every pass draws `num_images` of the training set, the same whatever the number of processes, and
    reads them without augmentation; each process gets its share.

    Args:
        cfg: a config, whose training sets, test-time image size and loader settings are used.
        mapper: reads a record of the training set; None stands for Detectron2's mapper, or the one that
            :meth:`read_as` finds.
    """

    def __init__(self, cfg: CfgNode, mapper: Mapper | None = None) -> None:
        self.cfg, self.mapper = cfg, mapper
        self._images: list[JsonObject] = []

    def read_as(
        self, train_loader: object, build_test_loader: Callable[[CfgNode, str], object] | None
    ) -> None:
        """Read as a trainer does at test time, by :func:`~.mappers.test_time_mapper`, unless told how.

        Raises:
            ConfigError: its mapper cannot read the training set.
        """
        records: list[JsonObject] = []

        def first() -> JsonObject:
            records.extend(self._read())
            return records[0]

        if self.mapper is None:
            self.mapper = test_time_mapper(self.cfg, first, train_loader, build_test_loader)
            self._images = [needed(record, self.mapper) for record in records]

    def _read(self) -> list[JsonObject]:
        names = self.cfg.DATASETS.TRAIN
        try:
            dicts: list[JsonObject] = get_detection_dataset_dicts(names, filter_empty=False)
        except (AssertionError, KeyError) as error:  # no set, or one that is not registered
            raise ConfigError(
                "DATASETS.TRAIN",
                names,
                f"the matching cannot read its images there ({error})",
                "Name sets that are registered with Detectron2; or set `matching.images` of the RematchHook "
                "to a function from an iteration to batches.",
            ) from error
        return dicts

    def __call__(self, iteration: int) -> Iterable[list[JsonObject]]:
        """Returns the batches for the pass before an iteration, which depend on it and SEED alone."""
        mapper = self.mapper or stock_mapper(self.cfg)
        if not self._images:  # read once, when first needed
            self._images = [needed(record, mapper) for record in self._read()]
        generator = torch.Generator().manual_seed(max(self.cfg.SEED, 0) + iteration)
        order = torch.randperm(len(self._images), generator=generator)
        drawn = [self._images[i] for i in order[: self.cfg.DISTILL.MATCHING.NUM_IMAGES]]
        # Neighbours of one shape leave little padding to compute.
        drawn.sort(key=lambda image: image.get("width", 1) / image.get("height", 1))
        world_size = comm.get_world_size()
        if len(drawn) < world_size:
            raise ConfigError(
                "DISTILL.MATCHING.NUM_IMAGES",
                self.cfg.DISTILL.MATCHING.NUM_IMAGES,
                f"{len(drawn)} images do not go round {world_size} processes",
                "Give at least one image for each process, and a training set that has them.",
            )
        share = drawn[comm.get_rank() :: world_size]
        named = NamingMapper(mapper, skip=self.cfg.DATALOADER.SKIP_UNREADABLE)
        dataset = MapDataset(DatasetFromList(share, copy=False), named)
        return DataLoader(
            dataset,
            batch_size=max(self.cfg.SOLVER.IMS_PER_BATCH // world_size, 1),
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            collate_fn=trivial_batch_collator,
            generator=generator,
            worker_init_fn=partial(_leave_with, os.getpid()),
        )


def _leave_with(parent: int, worker: int) -> None:
    """End a worker whose parent died while it was being forked.

    Torch's worker compares its parent with the one that it finds when it starts, and would never notice.
    """
    if os.getppid() != parent:
        os._exit(1)
