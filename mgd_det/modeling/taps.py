"""Reading features out of stock Detectron2 networks, through hooks that live for one forward pass.

The taps `res2` to `res5` are the residual sums of a ResNet stage's last block *before* the ReLU, `res2_relu`
to `res5_relu` the same after it; `p2` to `p7` are outputs of the FPN, which have no ReLU. In backbones that
are no ResNets, every name under which they return features is a tap. Any other name is the path of a module
inside the backbone. `student_name=teacher_name` takes another tap of the teacher. The
taps `head` and `predictions` are described in `heads.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Union

from detectron2.layers import ShapeSpec
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mgd_det.errors import UnknownTap
from mgd_det.maths.gradient_ratios import GradientPoint
from mgd_det.methods import HEAD_TAPS

# Takes a tap's features, and the tensor inside the network that holds them or passes them on. They are
# tensors in every network whose taps `TappedDetector` has accepted.
Emit = Callable[[Any, Any], None]


class Complete(Exception):
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
            other = parts.pop() if parts else None
            # Blocks with several branches run their parts once for each, which `TappedDetector` refuses.
            total = other + output if isinstance(other, Tensor) else other
            emit(total, output if self.shortcut is None or other is None else other)

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
    """An entry of the dict that the backbone, or the network below its FPN, returns."""

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
            # Some modules return another type, which `TappedDetector` refuses.
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
        if isinstance(blocks, nn.Sequential) and len(blocks) and _is_residual(blocks[-1])
    }
    modules = dict(backbone.named_modules())
    outputs = {
        output: network
        for network in (bottom_up, backbone)
        for output in _output_names(network)
        if output not in stages and output not in modules
    }
    if name in stages:
        return ResidualSum(stages[name][-1])
    for stage, blocks in stages.items():
        if name == after_relu(stage):
            return ModuleOutput(blocks, copy=False)
    if name in outputs:
        return BackboneOutput(outputs[name], name)
    if name and name in modules:
        return ModuleOutput(modules[name], copy=True)
    raise UnknownTap(
        f"it has the taps {[*stages, *map(after_relu, stages), *outputs]}, and its modules' paths"
    )


def after_relu(stage: str) -> str:
    """Returns the name of the tap of a stage's output, which its ReLU has gone over."""
    return f"{stage}_relu"


def _output_names(network: nn.Module) -> list[str]:
    output_shape: Callable[[], dict[str, ShapeSpec]] = getattr(network, "output_shape", dict)
    return list(output_shape())


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
    runs: Counter[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """While active, a forward pass of `backbone` fills the yielded dict: name -> (N, C, H, W).

    Args:
        backbone: a Detectron2 backbone.
        names: of the taps.
        stop: leave the network, and the body of the `with`, as soon as the last tap has been seen.
        points: filled like the yielded dict, with the places at which the taps' gradients can be read.
        runs: counts how often each tap is seen.
    """
    features: dict[str, Any] = {}
    handles: list[RemovableHandle] = []

    def emitter(name: str) -> Emit:
        def emit(tensor: Any, source: Any) -> None:
            features[name] = tensor
            if runs is not None:
                runs[name] += 1
            if points is not None and source.requires_grad:
                points[name] = GradientPoint(source)
            if stop and len(features) == len(set(names)):
                raise Complete

        return emit

    try:
        for name in names:
            handles += find_tap(backbone, name).attach(emitter(name))
        yield features
    except Complete:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While active, a model is in eval mode; afterwards every submodule gets back the mode that it had.

    It gets it back by its own `train`, which changes more than a flag in modules that have one for eval mode.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():  # parents before their children, whose modes may differ
            if module.training != mode:
                module.train(mode)
                module.training = mode


def backbone_and_head_taps(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the taps in the backbone and those in the head, each once."""
    unique = list(dict.fromkeys(names))
    return [n for n in unique if n not in HEAD_TAPS], [n for n in unique if n in HEAD_TAPS]
