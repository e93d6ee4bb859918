"""A detector whose features are read: its backbone, and its own forward pass as far as the taps need it.

Nothing is asked of a detector but that it runs on Detectron2's `[{"image", "height", "width"}]` in eval mode
and that a backbone is inside. What it does before the backbone is left to its own `forward`.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import Backbone
from torch import Tensor, nn

from mgd_det.detectron2_compat import BatchNorm
from mgd_det.detectron2_types import BatchedInputs
from mgd_det.errors import UnknownTap
from mgd_det.maths.gradient_ratios import GradientPoint
from mgd_det.methods import TapInfo
from mgd_det.rng import isolated_rng

from .heads import Captured, find_head
from .taps import (
    Complete,
    ResidualSum,
    after_relu,
    backbone_and_head_taps,
    capture,
    evaluating,
    find_tap,
)

# Two images tell a batch from something else of size 1, and unequal sides tell rows from columns. Both are
# multiples of every stride up to that of p7.
PROBE_IMAGES, PROBE_SIZE = 2, (256, 384)


class BackbonePass(NamedTuple):
    """Outcome of a detector's forward pass that was left in its backbone."""

    pixels: Tensor  # (N, C, H, W): the backbone's input, normalised and padded
    features: dict[str, Any]  # by tap: (N, C, H, W), or whatever the module there returns
    outputs: Any  # of the backbone; None where it was left before its end


class TappedDetector:
    """A detector, and where its backbone is.

    Args:
        detector: any Detectron2 detector.
        backbone_path: path of the module that is its backbone. If it is empty, that is `detector.backbone`,
            and where there is none the first :class:`detectron2.modeling.Backbone` inside.
    """

    def __init__(self, detector: nn.Module, backbone_path: str = "") -> None:
        self.detector, self.backbone_path = detector, backbone_path

    @property
    def backbone(self) -> nn.Module:
        """The backbone.

        Raises:
            UnknownTap: there is none.
        """
        if self.backbone_path:
            try:
                return self.detector.get_submodule(self.backbone_path)
            except AttributeError as error:
                raise UnknownTap(f"it has no module {self.backbone_path!r} to be its backbone") from error
        backbone = getattr(self.detector, "backbone", None)
        if isinstance(backbone, nn.Module):
            return backbone
        inside = next((module for module in self.detector.modules() if isinstance(module, Backbone)), None)
        if inside is None:
            raise UnknownTap(
                f"{type(self.detector).__name__} has no `backbone`, and no Backbone of Detectron2 inside"
            )
        return inside

    @contextmanager
    def capture(
        self, names: Sequence[str], points: dict[str, GradientPoint] | None = None
    ) -> Iterator[Captured]:
        """While active, a forward pass of the detector fills the yielded mapping: tap -> what it gives.

        Args:
            names: of taps in the backbone and in the head.
            points: filled, by tap, with the places at which gradients can be looked at. That of a tap in the
                head is all outputs of the backbone that the head is given.
        """
        names, head_names = backbone_and_head_taps(names)
        if not head_names:
            with capture(self.backbone, names, points=points) as features:
                yield features
            return
        head = find_head(self.detector)

        def mark(module: nn.Module, args: object, outputs: Mapping[str, Tensor]) -> None:
            given = [outputs[name] for name in head.in_features if outputs[name].requires_grad]
            if points is not None and given:
                points.update(dict.fromkeys(head_names, GradientPoint(*given)))

        handle = self.backbone.register_forward_hook(mark)
        try:
            with capture(self.backbone, names, points=points) as features, head.capture(head_names) as found:
                yield ChainMap(features, found)
        finally:
            handle.remove()

    def run(
        self,
        batched_inputs: BatchedInputs,
        names: Sequence[str],
        *,
        whole: bool = False,
        memory_format: torch.memory_format = torch.preserve_format,
        runs: Counter[str] | None = None,
    ) -> BackbonePass:
        """Run the detector's own forward pass, in the mode that it is in, and leave it in the backbone.

        Args:
            batched_inputs: the images, as the detector takes them.
            names: of taps in the backbone; without any, the pass is left before the backbone.
            whole: if True, the backbone is run to its end; if False, it is left at the last tap.
            memory_format: of the backbone's input.
            runs: counts how often each tap is seen.

        Raises:
            UnknownTap: the pass ends without having come to the backbone.
        """
        backbone = self.backbone
        given: list[Tensor] = []
        outputs: list[Any] = []

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            given.append(_images_in([*args, *kwargs.values()]).to(memory_format=memory_format))
            if not (names or whole):
                raise Complete
            if args and args[0] is not given[0] and isinstance(args[0], Tensor):
                return (given[0], *args[1:]), kwargs
            return None

        def end(module: nn.Module, args: object, output: Any) -> None:
            outputs.append(output)
            raise Complete

        with capture(backbone, names, stop=not whole, runs=runs) as features:
            handles = [
                backbone.register_forward_pre_hook(begin, with_kwargs=True),
                backbone.register_forward_hook(end),
            ]
            try:
                self.detector(batched_inputs)
            finally:
                for handle in handles:
                    handle.remove()
        if not given:
            name = type(self.detector).__name__
            raise UnknownTap(f"a forward pass of {name} does not call its backbone {type(backbone).__name__}")
        return BackbonePass(given[0], features, outputs[0] if outputs else None)

    def features(self, batched_inputs: BatchedInputs, names: Sequence[str]) -> Captured:
        """Returns what the taps give for images, from the detector's own forward pass as far as they need it.

        Args:
            batched_inputs: the images, as the detector takes them; without labels, even in training mode.
            names: of taps in the backbone, and of those in the head that need no labels.
        """
        names, head_names = backbone_and_head_taps(names)
        run = self.run(batched_inputs, names, whole=bool(head_names))
        if not head_names:
            return run.features
        return ChainMap(run.features, find_head(self.detector).run(run.outputs, head_names, {}))

    def inspect(self, names: Sequence[str]) -> dict[str, TapInfo]:
        """Returns the properties of each tap; the detector is run once, on black images, for it.

        Raises:
            UnknownTap: the detector has no such tap, or no features there that belong to a batch of images.
        """
        names, head_names = backbone_and_head_taps(names)
        found = {name: find_head(self.detector).info(name) for name in head_names}
        if not names:
            return found
        backbone = self.backbone
        taps = {name: find_tap(backbone, name) for name in names}
        sums = [name for name, tap in taps.items() if isinstance(tap, ResidualSum)]
        runs: Counter[str] = Counter()
        with isolated_rng(), evaluating(self.detector), torch.enable_grad(), _gradients_in(backbone):
            try:
                probed = [*names, *map(after_relu, sums)]
                seen = self.run(self._probe(backbone), probed, whole=True, runs=runs)
            except (UnknownTap, NotImplementedError):  # the latter of operators that a device lacks
                raise
            except Exception as error:  # its code can raise anything
                raise UnknownTap(
                    f"{type(self.detector).__name__} does not run in eval mode on images with their height "
                    f"and width ({type(error).__name__}: {error})"
                ) from error
        for name, tap in taps.items():
            if runs[name] > 1:
                raise UnknownTap(f"its module {name!r} is run {runs[name]} times in one forward pass")
            found[name] = _tap_info(name, seen.features.get(name), seen.pixels, _moments(tap.norm))
        for name in sums:
            total, output = seen.features[name], seen.features[after_relu(name)]
            if not any(
                torch.allclose(expected, output, equal_nan=True) for expected in (total.relu(), total)
            ):
                block = type(taps[name].hooked[0]).__name__
                raise UnknownTap(
                    f"at {name!r}, its {block} does more than add its last convolution and the shortcut: "
                    f"take {after_relu(name)!r}, what the block returns"
                )
        return found

    def _probe(self, backbone: nn.Module) -> BatchedInputs:
        """Returns black images as the detector takes them."""
        height, width = PROBE_SIZE
        device = next((p.device for p in self.detector.parameters()), torch.device("cpu"))
        mean = getattr(self.detector, "pixel_mean", None)
        # Without a mean, the convolution of the fewest channels is the one that takes the images.
        narrowest = min((m.in_channels for m in backbone.modules() if isinstance(m, nn.Conv2d)), default=3)
        channels = len(mean) if isinstance(mean, Tensor) else narrowest
        image = torch.zeros(channels, height, width, device=device)
        return inference_inputs([image] * PROBE_IMAGES)


def inference_inputs(images: Sequence[Tensor]) -> BatchedInputs:
    """Returns images, (C, H, W) each, as Detectron2's detectors take them in eval mode."""
    return [{"image": image, "height": image.shape[-2], "width": image.shape[-1]} for image in images]


def channels_first(features: Tensor, info: TapInfo) -> Tensor:
    """Returns a tap's features as (N, C, H, W), whatever the order of their dimensions is in the network."""
    return features.permute(0, 3, 1, 2) if info.channels_last else features


def _tap_info(
    name: str, features: object, pixels: Tensor, batch_norm: tuple[Tensor, Tensor] | None
) -> TapInfo:
    """Returns a tap's properties, by what it gave for a batch; raises an UnknownTap if it cannot be one."""
    if isinstance(features, Tensor) and features.dim() == 4 and len(features) == len(pixels):
        for channels_last, rows in ((False, 2), (True, 1)):
            strides = [s // f for s, f in zip(pixels.shape[-2:], features.shape[rows : rows + 2])]
            if strides[0] == strides[1] > 0:
                channels = features.shape[3 if channels_last else 1]
                trainable = features.requires_grad
                return TapInfo(channels, strides[0], trainable, batch_norm, channels_last=channels_last)
    if features is None:
        problem = "nothing, since a forward pass does not run it"
    elif isinstance(features, Tensor):
        problem = f"a tensor of shape {tuple(features.shape)} for {len(pixels)} images of "
        problem += " x ".join(map(str, pixels.shape[-2:]))
    else:
        problem = f"a {type(features).__name__}"
    raise UnknownTap(f"its module {name!r} gives no (N, C, H, W) features in a forward pass, but {problem}")


def _images_in(values: Sequence[Any]) -> Tensor:
    """Returns the images among a backbone's arguments: a tensor, or an ImageList or the like around it."""
    for value in values:
        for found in (value, getattr(value, "tensor", None), getattr(value, "tensors", None)):
            if isinstance(found, Tensor) and found.dim() == 4:
                return found
    raise UnknownTap("its backbone is not called with a batch of images, (N, C, H, W)")


@contextmanager
def _gradients_in(backbone: nn.Module) -> Iterator[None]:
    """While active, a backbone builds an autograd graph even where its detector predicts without one."""

    def enable(module: nn.Module, args: object) -> None:
        torch.set_grad_enabled(True)

    handle = backbone.register_forward_pre_hook(enable)
    try:
        yield
    finally:
        handle.remove()


def _moments(norm: nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """Returns the affine parameters of a batch norm, if they are the mean and deviation of its output."""
    if not isinstance(norm, (FrozenBatchNorm2d, BatchNorm)) or norm.weight is None:
        return None
    if isinstance(norm, FrozenBatchNorm2d):
        # Model-zoo weights converted from Caffe2 carry the statistics folded into weight and bias.
        folded_mean = not norm.running_mean.any()
        folded_variance = torch.allclose(norm.running_var, torch.ones_like(norm.running_var), atol=1e-4)
        if folded_mean and folded_variance:
            return None
    return norm.weight.detach(), norm.bias.detach()
