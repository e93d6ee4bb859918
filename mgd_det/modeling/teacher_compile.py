"""`torch.compile` for the teacher: those parts of its backbone into which no tap looks."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from torch import nn

from mgd_det.detectron2_compat import allow_compilations

from .taps import find_tap

# Dynamo counts what it has compiled by code, which a backbone's blocks share: those of a ResNet-50 need all 8
# that it allows, and what came after would run uncompiled.
COMPILATIONS = 64


def compile_between(backbone: nn.Module, names: Sequence[str]) -> None:
    """Compile, when they are first run, the largest modules that taps see from outside alone.

    Compiled code passes over hooks that come after it, so what a tap hooks, and all that holds it, stays as
    it is. Sizes of images and batches are left open: other ones are not compiled anew. A batch of one is, and
    another precision of autocast.

    Args:
        backbone: changed in place; its parameters and its `state_dict()` are not.
        names: of the taps.
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
