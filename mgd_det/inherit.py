"""Starting a student from parts of its teacher."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from .errors import ConfigError

logger = logging.getLogger("detectron2." + __name__)

KEY = "DISTILL.INHERIT"
_HEADS = ("head.", "proposal_generator.", "roi_heads.")


def inherit(student: nn.Module, teacher: nn.Module, parts: Sequence[str]) -> dict[str, list[str]]:
    """Copy the teacher's tensors into the student's of the same name wherever the shapes agree.

    Args:
        student, teacher: Detectron2 detectors.
        parts: "fpn" (the backbone without its bottom-up network), "head" (all behind the backbone), or the
            path of a module, the same in both.

    Returns:
        For each part the names of the tensors that were copied.

    Raises:
        ConfigError: a part is in one of the networks alone, or no shape of it agrees; nothing is copied.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    found: dict[str, list[str]] = {}
    for part in parts:
        names = [name for name in ours if _belongs(name, part)]
        given = [name for name in theirs if _belongs(name, part)]
        if not names or not given:
            role, network = ("student", student) if not names else ("teacher", teacher)
            raise ConfigError(
                KEY,
                list(parts),
                f"the {role} has no module {part!r}",
                f'Name "fpn", "head", or modules of both; it has {_modules(network)}, and modules in these.',
            )
        fitting = [name for name in names if name in theirs and ours[name].shape == theirs[name].shape]
        if not any(ours[name].dim() for name in fitting):  # counters always agree
            raise ConfigError(
                KEY,
                list(parts),
                f"no tensor of {part!r} has one name and shape in both networks: the student's {names[0]} is "
                f"{tuple(ours[names[0]].shape)}, the teacher's {given[0]} {tuple(theirs[given[0]].shape)}",
                "Give the student the teacher's widths and classes there, or leave that part out.",
            )
        found[part] = fitting
        left = [f"{name} {tuple(ours[name].shape)}" for name in names if name not in fitting]
        logger.info(
            "inherited from the teacher: %d of %d tensors of %r%s",
            len(fitting),
            len(names),
            part,
            f"; not, since the shapes differ: {', '.join(left)}" if left else "",
        )
    for name in dict.fromkeys(name for fitting in found.values() for name in fitting):
        ours[name].copy_(theirs[name])
    return found


def _belongs(name: str, part: str) -> bool:
    if part == "fpn":
        return name.startswith("backbone.") and not name.startswith("backbone.bottom_up.")
    if part == "head":
        return name.startswith(_HEADS)
    return name.startswith(f"{part}.")


def _modules(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_children()]
