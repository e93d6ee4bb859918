"""What can be told only from images: whether the two networks see the same, and what distilling costs."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor, nn

from mgd_det.methods import Features, TapFeatures
from mgd_det.rng import isolated_rng

logger = logging.getLogger("detectron2." + __name__)

GREY_LEVELS = 1.0  # mean difference, of pixels of 0 .. 255, from which on images count as different
TRIALS = 2


class AddedCost(NamedTuple):
    """What distilling adds to a training step on one process."""

    seconds: float  # teacher, losses, and their gradients at the student's taps
    teacher_bytes: int  # its weights
    kept_bytes: int  # tensors that wait for the backward pass


def look_at_first_batch(
    detector: Any, batched_inputs: Sequence[Mapping[str, Any]], pair: Callable[[], Features]
) -> None:
    """Warn of a teacher that cannot teach, and log what the training will take.

    Args:
        detector: a DistilledDetector.
        batched_inputs: the batch.
        pair: computes both networks' features for it, the teacher's anew at every call.
    """
    images = [x["image"] for x in batched_inputs]
    difference = pixel_difference(detector, images)
    if difference > GREY_LEVELS:
        logger.warning(
            "student and teacher see different images: with channel order and normalisation undone, their "
            "pixels differ by %.1f of 255 on average. Compare what their preprocess_image does to images",
            difference,
        )
    _warn_of_constant_channels(pair())
    cost = added_cost(pair, detector.methods, detector.teacher.model)
    logger.info(
        "distillation adds about %.3f s to an iteration, and %.0f MB of memory: %.0f for the teacher's "
        "weights, %.0f for what waits for the backward pass",
        cost.seconds,
        (cost.teacher_bytes + cost.kept_bytes) / 1e6,
        cost.teacher_bytes / 1e6,
        cost.kept_bytes / 1e6,
    )


def _warn_of_constant_channels(features: Features) -> None:
    for tap, maps in features.items():
        if not isinstance(maps, TapFeatures):  # of a head, which sees what the backbone gives
            continue
        channels, constant = maps.teacher.shape[1], constant_channels(maps.teacher)
        if 2 * constant > channels:
            logger.warning(
                "%d of the teacher's %d channels at %s are constant over this batch and teach nothing: look "
                "at its weights with --eval-teacher",
                constant,
                channels,
                tap,
            )


@torch.no_grad()
def pixel_difference(detector: Any, images: Sequence[Tensor]) -> float:
    """Mean absolute difference between what student and teacher see, in the images' own grey levels."""
    student = detector.student.preprocess_image([{"image": image} for image in images]).tensor
    teacher = detector.teacher.pixels(images, detector.input_format)
    student = _undone(detector.student, student)
    teacher = _undone(detector.teacher.model, teacher)
    if detector.input_format != detector.teacher.input_format:
        teacher = teacher.flip(1)
    differences = []
    for image, seen, shown in zip(images, student, teacher):
        height, width = image.shape[-2:]
        seen, shown = seen[:, :height, :width], shown[:, :height, :width]
        if seen.shape != shown.shape:
            return float("inf")
        differences.append((seen - shown).abs().mean())
    return torch.stack(differences).mean().item()


def _undone(model: Any, pixels: Tensor) -> Tensor:
    return pixels.float() * model.pixel_std + model.pixel_mean


@torch.no_grad()
def constant_channels(features: Tensor) -> int:
    """How many channels of (N, C, H, W) have one value throughout, to float32's rounding."""
    low, high = (extreme((0, 2, 3)).float() for extreme in (features.amin, features.amax))
    return int((high - low <= 1e-6 * torch.maximum(low.abs(), high.abs())).sum())


def added_cost(pair: Callable[[], Features], methods: nn.Module, teacher: nn.Module) -> AddedCost:
    """Measure the distiller's part of a step, on copies, so that no state and no random stream moves.

    Args:
        pair: computes the features, the teacher's anew at every call.
        methods: ModuleDict of the methods.
        teacher: the teacher's network.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    methods = copy.deepcopy(methods)
    seconds = []
    with isolated_rng(), torch.enable_grad():
        for _ in range(1 + TRIALS):  # the first one allocates
            start = _now()
            features = {tap: _detached(item) for tap, item in pair().items()}
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                losses = [loss for method in methods.children() for loss in method(features).values()]
            total = torch.stack(losses).sum()
            if total.requires_grad:  # not where the caller has switched gradients off
                total.backward()
            seconds.append(_now() - start)
            del features, losses  # a step holds them once
            if len(seconds) == 1:
                kept_bytes = sum(kept.values())
    weights = [*teacher.parameters(), *teacher.buffers()]
    return AddedCost(min(seconds[1:]), sum(w.nbytes for w in weights), kept_bytes)


def _detached(item: Any) -> Any:
    """The same features as leaves of a graph of their own."""
    if isinstance(item, Tensor):
        return item.detach().requires_grad_() if item.requires_grad else item
    if isinstance(item, tuple):  # one of the interface's NamedTuples
        return type(item)(*map(_detached, item))
    return [_detached(part) for part in item] if isinstance(item, list) else item


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
