"""Copying parts of a teacher into its student."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mgd_det.checkpoint.checkpointer import is_no_counter
from mgd_det.errors import ConfigError

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
        ConfigError: a part is in one of the networks alone, its head has other layers in the other one, or
            no shape of it agrees; nothing is copied.
    """
    ours, theirs = student.state_dict(), teacher.state_dict()
    found: dict[str, list[str]] = {}
    for part in parts:
        _check_modules(student, teacher, part, parts)
        found[part] = _fitting(ours, theirs, part, parts)
        _log_inherited(part, found[part], ours, theirs)
    for name in dict.fromkeys(name for fitting in found.values() for name in fitting):
        ours[name].copy_(theirs[name])
    return found


def _check_modules(student: nn.Module, teacher: nn.Module, part: str, parts: Sequence[str]) -> None:
    """Refuse, with a ConfigError, a part that one of the networks lacks, or that has other layers there."""
    names, given = _tensors(student.state_dict(), part), _tensors(teacher.state_dict(), part)
    if not names or not given:
        role, network = ("student", student) if not names else ("teacher", teacher)
        raise ConfigError(
            KEY,
            list(parts),
            f"the {role} has no module {part!r}",
            f'Name "fpn", "head", or modules of both; it has {_modules(network)}, and modules in these.',
        )
    _check_layers(student, names, given, parts)


def _fitting(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], part: str, parts: Sequence[str]
) -> list[str]:
    """Returns the names of a part's tensors that agree in name and shape; a ConfigError if there are none."""
    names, given = _tensors(ours, part), _tensors(theirs, part)
    fitting = [name for name in names if name in theirs and ours[name].shape == theirs[name].shape]
    if not any(ours[name].dim() for name in fitting):  # counters always agree
        raise ConfigError(
            KEY,
            list(parts),
            f"no tensor of {part!r} has one name and shape in both networks: the student's {names[0]} is "
            f"{tuple(ours[names[0]].shape)}, the teacher's {given[0]} {tuple(theirs[given[0]].shape)}",
            "Give the student the teacher's widths and classes there, or leave that part out.",
        )
    return fitting


def _log_inherited(
    part: str, fitting: Sequence[str], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> None:
    """Log how many tensors of a part are copied, and which are not and why."""
    names, given = _tensors(ours, part), _tensors(theirs, part)
    reshaped = [f"{n} {tuple(ours[n].shape)}" for n in names if n in theirs and n not in fitting]
    lines = [
        f"inherited from the teacher: {len(fitting)} of {len(names)} tensors of {part!r}",
        *_listed("not, since the shapes differ", reshaped),
        *_listed("not, since the teacher lacks them", [name for name in names if name not in theirs]),
        *_listed("the teacher's alone", [name for name in given if name not in ours]),
    ]
    logger.info("%s", "; ".join(lines))


def _listed(reason: str, names: Sequence[str]) -> list[str]:
    return [f"{reason}: {', '.join(names)}"] if names else []


def _tensors(state: Mapping[str, Tensor], part: str) -> list[str]:
    if part == "head":
        return [name for name in state if name.startswith(_HEADS)]
    if part == "fpn":
        backbone = [name for name in state if name.startswith("backbone.")]
        outside = [name for name in backbone if not name.startswith("backbone.bottom_up.")]
        return outside if outside != backbone else []  # a backbone without an FPN is no FPN
    return [name for name in state if name.startswith(f"{part}.")]


def _check_layers(student: nn.Module, names: list[str], given: list[str], parts: Sequence[str]) -> None:
    """Refuse heads whose layers come one after the other, but not the same ones.

    Names there are positions: with another number of layers, or a norm between them, one name is two things.
    """
    for path, module in student.named_modules():
        if not (isinstance(module, nn.Sequential) and f"{path}.".startswith(_HEADS)):
            continue
        ours, theirs = (
            {n for n in tensors if n.startswith(f"{path}.") and is_no_counter(n)}
            for tensors in (names, given)
        )
        if ours and theirs and ours != theirs:
            only = " and ".join(
                f"the {role} alone has {', '.join(sorted(mine - other))}"
                for role, mine, other in (("student", ours, theirs), ("teacher", theirs, ours))
                if mine - other
            )
            raise ConfigError(
                KEY,
                list(parts),
                f"{path!r} has other layers in the two networks: {only}",
                "Give the student's head as many layers as the teacher's and the same norm (NUM_CONVS, "
                "NUM_CONV, NUM_FC and NORM of its MODEL keys), or name parts without it.",
            )


def _modules(network: nn.Module) -> list[str]:
    return [name for name, _ in network.named_children()]
