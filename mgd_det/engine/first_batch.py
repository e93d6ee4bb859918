"""Checks on the first batch: both networks see the same, the teacher is alive; and the cost of distilling."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Callable, NamedTuple

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from mgd_det.detectron2_types import BatchedInputs, Detector
from mgd_det.distributed import unwrapped
from mgd_det.methods import Features, FeaturesOfTap, Method, Prediction, PredictionPair, TapFeatures
from mgd_det.modeling.detector import DistilledDetector
from mgd_det.modeling.heads import Captured
from mgd_det.modeling.teacher import Teacher
from mgd_det.rng import isolated_rng

logger = logging.getLogger("detectron2." + __name__)

GREY_LEVELS = 1.0  # images count as different from this mean difference on, of pixels from 0 to 255
TRIALS = 2


class AddedCost(NamedTuple):
    """Time and memory that distilling adds to a training step on one process."""

    seconds: float  # teacher, losses, and their gradients at the student's taps
    teacher_bytes: int  # its weights
    kept_bytes: int  # tensors that wait for the backward pass


class FirstBatchHook(HookBase):
    """Looks at the first batch that a trainer's :class:`DistilledDetector` is distilled with.

    :class:`~mgd_det.engine.rematch.RematchHook` holds one; it can also be registered alone.
    """

    def __init__(self) -> None:
        self._watched = False

    def before_step(self) -> None:
        detector = unwrapped(self.trainer.model)
        if isinstance(detector, DistilledDetector) and detector.methods and detector.plan.loss_factor > 0:
            self.watch(detector)

    def watch(self, detector: DistilledDetector) -> None:
        """Look at the detector's next training batch, unless that was done before."""
        if not self._watched:
            watch_next_batch(detector)
            self._watched = True


def watch_next_batch(detector: DistilledDetector) -> None:
    """Look at a detector's next training batch while it is trained on, with :func:`look_at_batch`.

    The student's features are read in its own forward pass, so that no state and no random stream moves.
    """
    inputs: list[BatchedInputs] = []
    seen: list[Captured] = []
    capturing = ExitStack()

    def begin(_: nn.Module, args: tuple[BatchedInputs]) -> None:
        if detector.training and not inputs:
            detector.prepare()
            inputs.append(args[0])
            seen.append(capturing.enter_context(detector.capture_student()))

    def end(_: nn.Module, args: tuple[BatchedInputs], output: object) -> None:
        if not inputs:
            return
        capturing.close()
        before.remove()
        after.remove()
        if output is not None:  # None where the forward pass has raised
            batch = detector.to_device(inputs[0])
            look_at_batch(detector, batch, lambda: detector.pair(seen[0], batch))

    before = detector.register_forward_pre_hook(begin)
    after = detector.register_forward_hook(end, always_call=True)


def look_at_batch(
    detector: DistilledDetector, batched_inputs: BatchedInputs, pair: Callable[[], Features]
) -> None:
    """Warn of a teacher that cannot teach, and log what the training will take.

    Args:
        detector: with its teacher loaded.
        batched_inputs: the batch, on the detector's device.
        pair: computes both networks' features for it, the teacher's anew at every call.
    """
    teacher = detector.teacher
    assert teacher is not None
    images = [x["image"] for x in batched_inputs]
    difference = pixel_difference(detector, teacher, images)
    if difference > GREY_LEVELS:
        logger.warning(
            "student and teacher see different images: with channel order and normalisation undone, their "
            "pixels differ by %.1f of 255 on average. Compare what their preprocess_image does to images",
            difference,
        )
    _warn_of_constant_channels(pair())
    cost = added_cost(pair, detector.methods, teacher.model)
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
        if not isinstance(maps, TapFeatures):  # a head is as constant as the backbone before it
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
def pixel_difference(detector: DistilledDetector, teacher: Teacher, images: Sequence[Tensor]) -> float:
    """Returns the mean absolute difference between what student and teacher see, in the images' grey levels.

    Args:
        images: (C, H, W) each, on the detector's device. Normalisation and channel order are undone.
    """
    pixels = detector.student.preprocess_image([{"image": image} for image in images]).tensor
    student = _undone(detector.student, pixels)
    taught = _undone(teacher.model, teacher.pixels(images, detector.input_format))
    if detector.input_format != teacher.input_format:
        taught = taught.flip(1)
    differences = []
    for image, seen, shown in zip(images, student, taught):
        height, width = image.shape[-2:]
        seen, shown = seen[:, :height, :width], shown[:, :height, :width]
        if seen.shape != shown.shape:
            return float("inf")
        differences.append((seen - shown).abs().mean())
    return torch.stack(differences).mean().item()


def _undone(model: Detector, pixels: Tensor) -> Tensor:
    return pixels.float() * model.pixel_std + model.pixel_mean


@torch.no_grad()
def constant_channels(features: Tensor) -> int:
    """Returns how many channels of (N, C, H, W) have one value throughout, to float32's rounding."""
    low, high = (extreme((0, 2, 3)).float() for extreme in (features.amin, features.amax))
    return int((high - low <= 1e-6 * torch.maximum(low.abs(), high.abs())).sum())


def added_cost(pair: Callable[[], Features], methods: Mapping[str, Method], teacher: nn.Module) -> AddedCost:
    """Measure the distiller's part of a step, on copies, so that no state and no random stream moves.

    Args:
        pair: computes the features, the teacher's anew at every call.
        methods: by name.
        teacher: the teacher's network.
    """
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    copies = [copy.deepcopy(method) for method in methods.values()]
    seconds = []
    with isolated_rng(), torch.enable_grad():
        for _ in range(1 + TRIALS):  # the first pass allocates memory and is not timed
            start = _now()
            features = {tap: _detached(item) for tap, item in pair().items()}
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                losses = [loss for method in copies for loss in method(features).values()]
            total = torch.stack(losses).sum()
            if total.requires_grad:  # False where the caller has switched gradients off
                total.backward()
            seconds.append(_now() - start)
            del features, losses  # a training step holds them only once
            if len(seconds) == 1:
                kept_bytes = sum(kept.values())
    weights = [*teacher.parameters(), *teacher.buffers()]
    return AddedCost(min(seconds[1:]), sum(w.nbytes for w in weights), kept_bytes)


def _detached(item: FeaturesOfTap) -> FeaturesOfTap:
    """Returns the same features as leaves of a graph of their own."""
    if isinstance(item, list):
        return [_detached_maps(maps) for maps in item]
    if isinstance(item, TapFeatures):
        return _detached_maps(item)
    return PredictionPair(_detached_prediction(item.student), _detached_prediction(item.teacher), item.mask)


def _detached_maps(maps: TapFeatures) -> TapFeatures:
    return maps._replace(student=_leaf(maps.student), teacher=_leaf(maps.teacher))


def _detached_prediction(prediction: Prediction) -> Prediction:
    scores, boxes, centerness = prediction
    return Prediction(_leaf(scores), _leaf(boxes), None if centerness is None else _leaf(centerness))


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.requires_grad else tensor


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()
