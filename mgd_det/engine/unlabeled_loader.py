"""Batches that hold images without labels beside those of another loader."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader

from mgd_det.config import check_unlabeled_share, unlabeled_per_batch, uses_teacher
from mgd_det.data.readable import NamingMapper
from mgd_det.data.unlabeled import unlabeled_records
from mgd_det.detectron2_types import UNLABELED, BatchedInputs
from mgd_det.rng import isolated_rng

from .exact_resume import Mapper, SampleOrder, SeededImages


def with_unlabeled(
    loader: Iterable[BatchedInputs], cfg: CfgNode, mapper: Mapper | None = None
) -> Iterable[BatchedInputs]:
    """Returns a training loader that adds images of `DATASETS.UNLABELED` to every batch of another one.

    The batches of the other one stay as they are. Every process calls this.

    Args:
        loader: a Detectron2 training loader.
        cfg: a config with this project's keys.
        mapper: turns a record with a file_name and an image_id into an input of the detector; None stands
            for Detectron2's, with the augmentation of the config.

    Returns:
        The new loader; or the given one where no set is named or no method learns from a teacher.

    Raises:
        ConfigError: a set is not there, or the processes cannot share its part of a batch.
    """
    if not (cfg.DATASETS.UNLABELED and uses_teacher(cfg) and cfg.DISTILL.METHODS):
        return loader
    check_unlabeled_share(cfg, comm.get_world_size())
    if mapper is None:
        mapper = NamingMapper(DatasetMapper(cfg, is_train=True), skip=cfg.DATALOADER.SKIP_UNREADABLE)
    return WithUnlabeled(loader, cfg, mapper)


class WithUnlabeled:
    """The loader of :func:`with_unlabeled`; set `start` to the first iteration before iterating.

    The images' order and augmentation are a function of a seed and the position, apart from all random
    streams. With DISTILL.EXACT_RESUME the seed is that of the config; otherwise it is drawn.
    """

    def __init__(self, loader: Iterable[BatchedInputs], cfg: CfgNode, mapper: Mapper) -> None:
        # Under the name by which Detectron2's loaders keep what they wrap.
        self.dataset: Any = loader
        self.batch_size = unlabeled_per_batch(cfg) // comm.get_world_size()
        self.num_workers = cfg.DATALOADER.NUM_WORKERS
        with isolated_rng():
            drawn = comm.shared_random_seed()
        seed = cfg.SEED if cfg.DISTILL.EXACT_RESUME else drawn
        # Another one than that of the images with labels, which would be shuffled in the same way.
        self.seed = int(np.random.SeedSequence((seed, 1)).generate_state(1)[0])
        records = [record for name in cfg.DATASETS.UNLABELED for record in unlabeled_records(name)]
        grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        self.landscape = [x.get("width", 0) > x.get("height", 0) for x in records] if grouped else None
        # Without sizes, which would have to be right.
        self.images = SeededImages(
            [{key: x[key] for key in ("file_name", "image_id") if key in x} for x in records],
            mapper,
            self.seed,
        )
        self._start = 0

    @property
    def start(self) -> int:
        """The number of batches to leave out."""
        return self._start

    @start.setter
    def start(self, start: int) -> None:
        self._start = start
        if hasattr(self.dataset, "start"):
            self.dataset.start = start

    def __iter__(self) -> Iterator[BatchedInputs]:
        order = SampleOrder(len(self.images), self.batch_size, self.seed, self.landscape, self._start)
        added = DataLoader(
            self.images,
            batch_sampler=order,
            num_workers=self.num_workers,
            collate_fn=trivial_batch_collator,
            generator=torch.Generator(),  # draws the workers' seeds, not from the global stream
        )
        for batch, others in zip(self.dataset, added):
            yield [*batch, *({**_without_labels(x), UNLABELED: True} for x in others)]


def _without_labels(image: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in image.items() if key != "instances"}
