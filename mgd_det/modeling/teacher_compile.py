"""`torch.compile` for those parts of the teacher's backbone into which no tap looks."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from mgd_det.detectron2_compat import allow_compilations

from .taps import find_tap

# Dynamo limits the compilations of one piece of code to 8, which the blocks of a backbone share: those of a
# ResNet-50 need all 8, and later ones would run uncompiled.
COMPILATIONS = 64


def compile_between(backbone: nn.Module, names: Collection[str]) -> None:
    """Compile the largest modules without a tap inside, when they are first run.

    Compiled code ignores hooks that are added later, so a module with a tap, and every module that contains
    it, stays as it is. Other sizes of images and batches are not compiled anew, but a batch of one is, and so
    is another precision of autocast.

    Args:
        backbone: the backbone; it is changed in place, its parameters and its `state_dict()` are not.
        names: the names of the taps.
    """
    allow_compilations(COMPILATIONS)
    hooked = {module for name in names for module in find_tap(backbone, name).hooked}
    for part in _parts(backbone, hooked):
        part.compile(dynamic=True)


def _parts(module: nn.Module, hooked: Collection[nn.Module]) -> Iterator[nn.Module]:
    if not any(inner in hooked for inner in module.modules()):
        yield module
        return
    for child in module.children():
        yield from _parts(child, hooked)
