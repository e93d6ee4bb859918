"""Reading features out of stock Detectron2 networks, through hooks that live for one forward pass.

The taps `res2` to `res5` are the residual sums of a ResNet stage's last block *before* the ReLU, `res2_relu`
to `res5_relu` the same after it; `p2` to `p7` are outputs of the FPN, which have no ReLU. Any other name is
the path of a module inside the backbone. `student_name=teacher_name` takes another tap of the teacher. The
taps `head` and `predictions` are described in `heads.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Callable, Union, cast

import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mgd_det.detectron2_compat import BatchNorm
from mgd_det.detectron2_types import Detector
from mgd_det.errors import UnknownTap
from mgd_det.maths.gradient_ratios import GradientPoint
from mgd_det.methods import HEAD_TAPS, TapInfo

from .heads import find_head

PROBE_SIZE = 256  # pixels; a multiple of every stride up to that of p7 and of res5

# Takes a tap's features, and the tensor inside the network that holds them or passes them on.
Emit = Callable[[Tensor, Tensor], None]


class _Complete(Exception):
    """Raised from a hook once every tap has been seen, to leave the rest of the network alone."""


class ResidualSum:
    """The pre-ReLU output of a stock residual block.

    Detectron2's blocks compute `out += shortcut; relu_(out)` in place on the output of their last
    convolution, so the sum is formed here as a tensor of its own, inside the autograd graph.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.last_conv: nn.Module = getattr(block, "conv3", None) or block.get_submodule("conv2")
        self.shortcut: nn.Module | None = getattr(block, "shortcut", None)
        self.norm: nn.Module | None = getattr(self.last_conv, "norm", None)
        self.hooked = [module for module in (block, self.last_conv, self.shortcut) if module is not None]

    def attach(self, emit: Emit) -> list[RemovableHandle]:
        parts: list[Tensor] = []

        def keep_input(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            parts.append(args[0])

        def keep_branch(module: nn.Module, args: object, output: Tensor) -> None:
            parts.append(output)

        def emit_sum(module: nn.Module, args: object, output: Tensor) -> None:
            branch = output if self.shortcut is None else parts[0]
            emit(parts.pop() + output, branch)

        if self.shortcut is None:
            return [
                self.block.register_forward_pre_hook(keep_input),
                self.last_conv.register_forward_hook(emit_sum),
            ]
        # A projection runs after the last convolution, before anything is changed in place.
        return [
            self.last_conv.register_forward_hook(keep_branch),
            self.shortcut.register_forward_hook(emit_sum),
        ]


class BackboneOutput:
    """An entry of the dict that the backbone returns."""

    norm: nn.Module | None = None

    def __init__(self, backbone: nn.Module, name: str) -> None:
        self.backbone, self.name = backbone, name
        self.hooked = [backbone]

    def attach(self, emit: Emit) -> list[RemovableHandle]:
        def emit_output(module: nn.Module, args: object, output: Mapping[str, Tensor]) -> None:
            emit(output[self.name], output[self.name])

        return [self.backbone.register_forward_hook(emit_output)]


class ModuleOutput:
    """The output of a module of the backbone.

    Args:
        module: the module.
        copy: hand out a copy, where the network goes on to change the output in place.
    """

    norm: nn.Module | None = None

    def __init__(self, module: nn.Module, *, copy: bool) -> None:
        self.module, self.copy = module, copy
        self.hooked = [module]

    def attach(self, emit: Emit) -> list[RemovableHandle]:
        def emit_output(module: nn.Module, args: object, output: Tensor) -> None:
            # Some modules return another type, which `inspect_taps` refuses.
            emit(output.clone() if self.copy and isinstance(output, Tensor) else output, output)

        return [self.module.register_forward_hook(emit_output)]


Tap = Union[ResidualSum, BackboneOutput, ModuleOutput]


def student_and_teacher_names(tap: str) -> tuple[str, str]:
    """Returns the names of a tap in the student and in the teacher."""
    student, _, teacher = tap.partition("=")
    return student, teacher or student


def find_tap(backbone: nn.Module, name: str) -> Tap:
    """Returns a tap of a backbone, with or without an FPN around it.

    Raises:
        UnknownTap: there is no such tap.
    """
    bottom_up: nn.Module = getattr(backbone, "bottom_up", backbone)
    stages = {
        name: blocks
        for name, blocks in bottom_up.named_children()
        if isinstance(blocks, nn.Sequential) and _is_residual(blocks[-1])
    }
    modules = dict(backbone.named_modules())
    output_shape: Callable[[], dict[str, ShapeSpec]] = getattr(backbone, "output_shape", dict)
    outputs = [output for output in output_shape() if output not in stages and output not in modules]
    if name in stages:
        return ResidualSum(stages[name][-1])
    if name.endswith("_relu") and name[: -len("_relu")] in stages:
        return ModuleOutput(stages[name[: -len("_relu")]], copy=False)
    if name in outputs:
        return BackboneOutput(backbone, name)
    if name and name in modules:
        return ModuleOutput(modules[name], copy=True)
    stages_relu = [f"{stage}_relu" for stage in stages]
    raise UnknownTap(f"it has the taps {[*stages, *stages_relu, *outputs]}, and its modules' paths")


def _is_residual(block: nn.Module) -> bool:
    return hasattr(block, "conv2") and hasattr(block, "shortcut")


def last_norms(backbone: nn.Module) -> list[nn.Module | None]:
    """Returns the norms that end the residual branches of a backbone, None for those without."""
    return [ResidualSum(block).norm for block in backbone.modules() if _is_residual(block)]


@contextmanager
def capture(
    backbone: nn.Module,
    names: Sequence[str],
    *,
    stop: bool = False,
    points: dict[str, GradientPoint] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """While active, a forward pass of `backbone` fills the yielded dict: name -> (N, C, H, W).

    Args:
        backbone: a Detectron2 backbone.
        names: of the taps.
        stop: leave the network, and the body of the `with`, as soon as the last tap has been seen.
        points: filled like the yielded dict, with the places at which the taps' gradients can be read.
    """
    features: dict[str, Tensor] = {}
    handles: list[RemovableHandle] = []

    def emitter(name: str) -> Emit:
        def emit(tensor: Tensor, source: Tensor) -> None:
            features[name] = tensor
            if points is not None:
                points[name] = GradientPoint(source)
            if stop and len(features) == len(set(names)):
                raise _Complete

        return emit

    try:
        for name in names:
            handles += find_tap(backbone, name).attach(emitter(name))
        yield features
    except _Complete:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While active, a model is in eval mode; afterwards every submodule gets back the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def backbone_and_head_taps(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the taps in the backbone and those in the head, each once."""
    unique = list(dict.fromkeys(names))
    return [n for n in unique if n not in HEAD_TAPS], [n for n in unique if n in HEAD_TAPS]


def inspect_taps(detector: nn.Module, names: Sequence[str]) -> dict[str, TapInfo]:
    """Returns the properties of each tap; the backbone is run once on zeros for it.

    Raises:
        UnknownTap: the detector has no such tap; or no `backbone` at all.
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UnknownTap(f"{type(detector).__name__} has no `backbone`")
    names, head_names = backbone_and_head_taps(names)
    found = {name: find_head(detector).info() for name in head_names}
    mean, size = cast(Detector, detector).pixel_mean, PROBE_SIZE
    zeros = torch.zeros(1, len(mean), size, size, device=mean.device)
    with evaluating(detector), torch.enable_grad(), capture(backbone, names, stop=True) as features:
        if names:
            backbone(zeros)
    for name in names:
        shape = getattr(features.get(name), "shape", ())
        if len(shape) != 4:
            raise UnknownTap(f"its module {name!r} gives no (N, C, H, W) features in a forward pass")
        found[name] = TapInfo(
            channels=features[name].shape[1],
            stride=size // features[name].shape[-1],
            trainable=features[name].requires_grad,
            batch_norm=_moments(find_tap(backbone, name).norm),
        )
    return found


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
