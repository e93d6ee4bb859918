"""Exact resume: every random choice is a function of the seed and of where it is made.

There is no random stream to save, and a run that was interrupted and resumed equals one that was not, bit for
bit on a CPU. This replaces Detectron2's own data loading, whose order starts afresh on every resume.
"""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Callable, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import trivial_batch_collator
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mgd_det.checkpoint.checkpointer import trainer_state
from mgd_det.detectron2_compat import (
    ScalarHistory,
    evaluation_hooks,
    metric_writers,
    restore_scalars,
    saved_scalars,
)
from mgd_det.detectron2_types import BatchedInputs, State
from mgd_det.distributed import unwrapped
from mgd_det.errors import ConfigError
from mgd_det.rng import isolated_rng

from .state_keys import EXACT_RESUME_STATE

Mapper = Callable[[State], "dict[str, object] | None"]

logger = logging.getLogger("detectron2." + __name__)

HISTORY = 200  # latest values kept of every logged scalar; writers smooth over 20
WRITE_PERIOD = 20  # iterations between two writes to metrics.json, as DefaultTrainer sets it
_RETRIES = 100  # other images tried when a mapper rejects one, as Detectron2 does


def seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and torch's streams from a tuple of non-negative integers."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def resolve_seed(cfg: CfgNode, *, resume: bool) -> None:
    """Give a run with SEED -1 a seed of its own, in place; a resumed one gets that of its checkpoint."""
    if cfg.SEED >= 0:
        return
    drawn = comm.shared_random_seed()
    hooks = trainer_state(cfg, resume=resume).get("hooks", {})
    cfg.SEED = hooks.get(EXACT_RESUME_STATE, {}).get("seed", drawn)


def check_seed(cfg: CfgNode) -> None:
    """Refuse, with a ConfigError, a run without a seed; see :func:`resolve_seed`."""
    if cfg.SEED < 0:
        problem = "DISTILL.EXACT_RESUME draws everything from the seed"
        raise ConfigError("SEED", cfg.SEED, problem, "Set one; tools/train_net.py draws one by itself.")


class SampleOrder(Sampler):
    """Yields batches of (position, index) without end, one shuffle of the data after the other.

    Position p of the run's samples belongs to process p % world_size. With `landscape`, a batch holds
    images of one orientation. Those that wait for their batch to fill are found again by replaying the order
    from its beginning, which takes a second for a million positions.

    Args:
        size: number of images.
        batch_size: images in a batch of this process.
        seed: seeds the shuffles.
        landscape: True for each image that is wider than high; None: orientation does not matter.
        start: number of batches to leave out.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int, landscape: Sequence[bool] | None, start: int = 0
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.landscape, self.start = landscape, start
        self.rank, self.world_size = comm.get_rank(), comm.get_world_size()

    def _positions(self) -> Iterator[tuple[int, int]]:
        position, epoch = self.rank, -1
        order: list[int] = []
        while True:
            if position // self.size != epoch:
                epoch = position // self.size
                generator = np.random.default_rng([self.seed, epoch])
                order = generator.permutation(self.size).tolist()
            yield position, order[position % self.size]
            position += self.world_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        buckets: dict[bool, list[tuple[int, int]]] = {False: [], True: []}
        filled = 0
        for position, index in self._positions():
            bucket = buckets[bool(self.landscape and self.landscape[index])]
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                if filled >= self.start:
                    yield list(bucket)
                filled += 1
                bucket.clear()


class SeededImages(Dataset):
    """Maps (position, index) to an image whose augmentation is drawn from (seed, position)."""

    def __init__(self, dicts: BatchedInputs, mapper: Mapper, seed: int) -> None:
        # One block of bytes, which the workers share, and from which every record is a copy.
        self.dicts = DatasetFromList(dicts)
        self.mapper, self.seed = mapper, seed

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        position, index = key
        with isolated_rng():
            for retry in range(_RETRIES):
                seed_all(self.seed, position, retry)
                record = self.dicts[(index + retry) % len(self.dicts)]
                image = self.mapper(record)
                if image is not None:
                    return image
        raise RuntimeError(f"the mapper rejected {_RETRIES} images in a row, from number {index} on")


class ExactLoader:
    """The training loader of exact resume; set `start` to the first iteration before iterating.

    Args:
        cfg: the run's config, its SEED resolved.
        mapper: maps a record of a data set to an image for the model, or to None where it cannot.
    """

    def __init__(self, cfg: CfgNode, mapper: Mapper) -> None:
        self.cfg, self.start = cfg, 0
        dicts = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
        self.dataset = SeededImages(dicts, mapper, cfg.SEED)
        grouped = cfg.DATALOADER.ASPECT_RATIO_GROUPING
        self.landscape = [d["width"] > d["height"] for d in dicts] if grouped else None

    def __iter__(self) -> Iterator[BatchedInputs]:
        batch_size = self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        order = SampleOrder(len(self.dataset), batch_size, self.cfg.SEED, self.landscape, self.start)
        yield from DataLoader(
            self.dataset,
            batch_sampler=order,
            num_workers=self.cfg.DATALOADER.NUM_WORKERS,
            collate_fn=trivial_batch_collator,
            generator=torch.Generator(),  # draws the workers' seeds, not from the global stream
        )


class Lost(NamedTuple):
    """Work that was due right after a checkpoint, and that a kill has prevented."""

    evaluation: bool  # if one was due at the checkpoint
    metrics: int | None  # iteration whose line was not written


class ExactResumeHook(HookBase):
    """Seeds every iteration, and carries what stock Detectron2 forgets through checkpoints.

    These are the `loss_normalizer` of RetinaNet and FCOS, a Python number of each process, and the histories
    of logged scalars, which are needed to smooth them.

    Args:
        cfg: the run's config, its SEED resolved.
    """

    __qualname__ = EXACT_RESUME_STATE

    def __init__(self, cfg: CfgNode) -> None:
        self.seed, self.period = cfg.SEED, cfg.SOLVER.CHECKPOINT_PERIOD
        self.metrics_file = os.path.join(cfg.OUTPUT_DIR, "metrics.json")
        self._normalizers: list[dict[str, float]] = []  # of every process, at the last checkpoint
        self._scalars: Mapping[str, ScalarHistory] = {}
        # Lines of the metrics file at the last checkpoint. Earlier runs may have written to it, too.
        self._metrics_lines = 0
        self._lost: Lost | None = None

    def before_train(self) -> None:
        start = self.trainer.start_iter
        last_written = start // WRITE_PERIOD * WRITE_PERIOD - 1
        complete = True
        if self.trainer.resuming and comm.is_main_process():
            # A kill between a checkpoint and the writing of the same iteration's metrics has lost these.
            complete = last_written in self._forget_metrics_after(last_written) or start % WRITE_PERIOD > 0
        complete = comm.all_gather(complete)[0]
        storage = self.trainer.storage
        if not start:
            return
        restore_scalars(storage, self._scalars, last_written - (0 if complete else WRITE_PERIOD))
        evaluates = self.trainer.resuming and (not complete or start % WRITE_PERIOD > 0)
        self._lost = Lost(evaluates, None if complete else last_written)

    def _make_up(self) -> None:
        """Make up for what was due after the checkpoint and has been lost.

        This is after the `before_train` of all hooks, some of which prepare for an evaluation there.
        """
        lost, self._lost = self._lost, None
        if lost is None:
            return
        trainer, storage, iteration = self.trainer, self.trainer.storage, self.trainer.iter
        if lost.evaluation:
            trainer.iter = storage.iter = trainer.start_iter - 1
            for hook in evaluation_hooks(trainer):
                hook.after_step()
        if lost.metrics is not None:
            storage.iter = lost.metrics
            for writer in metric_writers(trainer):
                writer.write()
        trainer.iter, storage.iter = iteration, trainer.start_iter

    def before_step(self) -> None:
        self._make_up()
        seed_all(self.seed, self.trainer.iter, comm.get_rank())

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if iteration % self.period == 0 or iteration >= self.trainer.max_iter:
            self.gather()

    def after_train(self) -> None:
        if self.trainer.start_iter >= self.trainer.max_iter:  # there was no step
            self._make_up()

    def gather(self) -> None:
        """Gather what a checkpoint holds of every process; all of them call it."""
        self._normalizers = comm.all_gather(self._own_normalizers())

    def _modules(self) -> dict[str, nn.Module]:
        return dict(unwrapped(self.trainer.model).named_modules())

    def _own_normalizers(self) -> dict[str, float]:
        return {
            name: float(vars(module)["loss_normalizer"])
            for name, module in self._modules().items()
            if "loss_normalizer" in vars(module)
        }

    def _forget_metrics_after(self, iteration: int) -> list[int]:
        """Cut off what an interrupted run wrote after its last checkpoint: it will be written again.

        Returns:
            The iterations of the lines that were written after that checkpoint and stay.
        """
        if not os.path.isfile(self.metrics_file):
            return []
        with open(self.metrics_file, "rb") as f:
            lines = f.readlines()
        kept, iterations = lines[: self._metrics_lines], []
        for line in lines[self._metrics_lines :]:
            if not line.endswith(b"\n"):
                break
            written = json.loads(line)["iteration"]
            if written > iteration:
                break
            kept.append(line)
            iterations.append(written)
        os.truncate(self.metrics_file, sum(map(len, kept)))
        return iterations

    def state_dict(self) -> State:
        lines = 0
        if os.path.isfile(self.metrics_file):
            with open(self.metrics_file, "rb") as f:
                lines = sum(1 for _ in f)
        return {
            "seed": self.seed,
            "normalizers": self._normalizers,
            "scalars": saved_scalars(self.trainer.storage, HISTORY),
            "metrics_lines": lines,
        }

    def load_state_dict(self, state: State) -> None:
        self._scalars, self._metrics_lines = state["scalars"], state.get("metrics_lines", 0)
        saved = state["normalizers"]
        if len(saved) != comm.get_world_size():
            logger.warning(
                "the checkpoint is of %d processes and this run has %d: it goes on, but not bit for bit",
                len(saved),
                comm.get_world_size(),
            )
        if comm.get_rank() < len(saved):
            modules = self._modules()
            for name, value in saved[comm.get_rank()].items():
                modules[name].loss_normalizer = value
