"""Checks on the first batch: both networks see the same, the teacher is alive; and the cost of distilling."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Callable, NamedTuple, cast

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from mgd_det.clock import now
from mgd_det.detectron2_types import UNLABELED, BatchedInputs
from mgd_det.distributed import unwrapped
from mgd_det.errors import ConfigError
from mgd_det.methods import Features, FeaturesOfTap, Method, Prediction, PredictionPair, TapFeatures
from mgd_det.modeling.build import taps_key
from mgd_det.modeling.detector import DistilledDetector
from mgd_det.modeling.heads import Captured
from mgd_det.modeling.tapped import inference_inputs
from mgd_det.modeling.taps import evaluating
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
    Images without labels, for which it has another pass, are not looked at.
    """
    inputs: list[BatchedInputs] = []
    seen: list[Captured] = []
    capturing = ExitStack()

    def begin(_: nn.Module, args: tuple[BatchedInputs]) -> None:
        if detector.training and not inputs:
            detector.prepare()
            inputs.append([x for x in args[0] if not x.get(UNLABELED)])
            seen.append(capturing.enter_context(detector.capture_student()))
            handle = detector.student.register_forward_hook(lambda *_: capturing.close())
            capturing.callback(handle.remove)

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
    if difference is None:
        logger.info("the pixels that student and teacher see are not compared: one has no pixel_mean")
    elif difference > GREY_LEVELS:
        logger.warning(
            "student and teacher see different images: with channel order and normalisation undone, their "
            "pixels differ by %.1f of 255 on average. Compare how they normalise images",
            difference,
        )
    features = pair()
    _check_foreground(detector, batched_inputs)
    _check_gradients(detector, features)
    _check_constant_channels(detector, features)
    cost = added_cost(pair, detector.methods, teacher.model)
    logger.info(
        "distillation adds about %.3f s to an iteration in which the teacher runs, and %.0f MB of memory: "
        "%.0f for the teacher's weights, %.0f for what waits for the backward pass",
        cost.seconds,
        (cost.teacher_bytes + cost.kept_bytes) / 1e6,
        cost.teacher_bytes / 1e6,
        cost.kept_bytes / 1e6,
    )


def _check_foreground(detector: DistilledDetector, batched_inputs: BatchedInputs) -> None:
    for name, method in detector.methods.items():
        if method.wants_foreground and "instances" not in batched_inputs[0]:
            raise ConfigError(
                "DISTILL.METHODS",
                list(detector.methods),
                f"{name} weights positions by ground-truth boxes, and the training batches have no instances",
                f"Set DISTILL.{name.upper()} so that all positions count alike.",
            )


def _check_gradients(detector: DistilledDetector, features: Features) -> None:
    """Check that the losses reach weights of the student, and that each has something to say.

    Raises:
        ConfigError: no gradient of a tap's features reaches a weight.
    """
    if not torch.is_grad_enabled():
        return
    for tap, found in features.items():
        if not all(maps.requires_grad for maps in _student_tensors(found)):
            key, taps = taps_key(detector.methods, tap)
            raise ConfigError(
                key,
                taps,
                f"in training, no gradient at the tap {tap!r} reaches a weight of the student, so its loss "
                "would teach nothing",
                "Activation checkpointing around a tap needs use_reentrant=False. Otherwise leave that tap "
                "out.",
            )
    silent = [name for method in detector.methods.values() for name in _silent_losses(method, features)]
    if silent:
        logger.warning(
            "%s: no gradient on the first batch. This is right only where the student starts as the teacher",
            ", ".join(silent),
        )


def _student_tensors(found: FeaturesOfTap) -> list[Tensor]:
    if isinstance(found, PredictionPair):
        return [tensor for tensor in found.student if tensor is not None]
    return [maps.student for maps in (found if isinstance(found, list) else [found])]


def _silent_losses(method: Method, features: Features) -> list[str]:
    """Returns the names of those losses with a weight whose gradient at the student's features is zero."""
    copies = {tap: _detached(features[tap]) for tap in method.taps}
    leaves = [leaf for found in copies.values() for leaf in _student_tensors(found)]
    with isolated_rng(), torch.enable_grad():
        losses = copy.deepcopy(method)(copies)
        silent = []
        for name, loss in losses.items():
            gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            moves = any(gradient is not None and bool(gradient.any()) for gradient in gradients)
            if method.losses[name].weight and not moves:
                silent.append(name)
    return silent


def _check_constant_channels(detector: DistilledDetector, features: Features) -> None:
    """Warn of a teacher most of whose channels are constant, and refuse one that is constant throughout.

    Raises:
        ConfigError: all its channels at a tap are.
    """
    for tap, maps in features.items():
        if not isinstance(maps, TapFeatures):  # a head is as constant as the backbone before it
            continue
        channels, constant = maps.teacher.shape[1], constant_channels(maps.teacher)
        if constant == channels:
            spec = detector.teacher_spec
            problem = f"all of this teacher's {channels} channels at {tap} are constant over the first batch"
            remedy = "It teaches nothing there. Look at it with --eval-teacher, or leave that tap out."
            raise ConfigError("DISTILL.TEACHER.WEIGHTS", spec.weights_path(), problem, remedy)
        if 2 * constant > channels:
            logger.warning(
                "%d of the teacher's %d channels at %s are constant over this batch and teach nothing: look "
                "at its weights with --eval-teacher",
                constant,
                channels,
                tap,
            )


@torch.no_grad()
def pixel_difference(detector: DistilledDetector, teacher: Teacher, images: Sequence[Tensor]) -> float | None:
    """Returns the mean absolute difference between what student and teacher see, in the images' grey levels.

    Returns None where one of them has no `pixel_mean` and `pixel_std`, by which to undo the normalisation.

    Args:
        images: (C, H, W) each, on the detector's device. Normalisation and channel order are undone.
    """
    student, taught = detector.tapped, teacher.tapped
    if not (_has_normalisation(student.detector) and _has_normalisation(taught.detector)):
        return None
    with isolated_rng(), evaluating(student.detector):
        seen = student.run(inference_inputs(images), ()).pixels
    shown = taught.run(teacher.inputs(images, detector.input_format), ()).pixels
    seen, shown = _undone(student.detector, seen), _undone(taught.detector, shown)
    if detector.input_format != teacher.input_format:
        shown = shown.flip(1)
    differences = []
    for image, ours, theirs in zip(images, seen, shown):
        height, width = image.shape[-2:]
        ours, theirs = ours[:, :height, :width], theirs[:, :height, :width]
        if ours.shape != theirs.shape:
            return float("inf")
        differences.append((ours - theirs).abs().mean())
    return torch.stack(differences).mean().item()


def _has_normalisation(model: nn.Module) -> bool:
    return all(isinstance(getattr(model, name, None), Tensor) for name in ("pixel_mean", "pixel_std"))


def _undone(model: nn.Module, pixels: Tensor) -> Tensor:
    return pixels.float() * cast(Tensor, model.pixel_std) + cast(Tensor, model.pixel_mean)


@torch.no_grad()
def constant_channels(features: Tensor) -> int:
    """Returns how many channels of (N, C, H, W) have one value at all positions, to float32's rounding.

    Of a single position, as the coarsest level of one small image has, that says nothing: it is 0.
    """
    if features[:, 0].numel() == 1:
        return 0
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
            start = now()
            features = {tap: _detached(item) for tap, item in pair().items()}
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                losses = [loss for method in copies for loss in method(features).values()]
            total = torch.stack(losses).sum()
            if total.requires_grad:  # False where the caller has switched gradients off
                total.backward()
            seconds.append(now() - start)
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
    student, teacher = map(_detached_prediction, (item.student, item.teacher))
    return item._replace(student=student, teacher=teacher)


def _detached_maps(maps: TapFeatures) -> TapFeatures:
    return maps._replace(student=_leaf(maps.student), teacher=_leaf(maps.teacher))


def _detached_prediction(prediction: Prediction) -> Prediction:
    scores, boxes, centerness = prediction
    return Prediction(_leaf(scores), _leaf(boxes), None if centerness is None else _leaf(centerness))


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.requires_grad else tensor
