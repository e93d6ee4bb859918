"""The matching that a checkpoint holds: reading it, and putting it in an order that can be looked at."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from visualizing.picture import Missing
from visualizing.runs import Run

from mgd_det.engine.state_keys import MATCHING_STATE
from mgd_det.errors import ConfigError
from mgd_det.maths.matching_statistics import MatchingStatistics
from mgd_det.maths.norms import STUDENT_NORMS
from mgd_det.methods.settings import module_key


class TapMatching(NamedTuple):
    """The matching of one tap."""

    groups: Tensor  # (Cs, G) teacher channels, -1 at the end of a short group
    cost: Tensor  # (Cs, Ct), that it was solved from; of the latest statistics in online mode
    images: float  # that the cost is the mean of; older ones decayed
    norm: nn.Module  # on the student's features in the loss, as it has been trained


class MatchingState(NamedTuple):
    """The state of MGD in a checkpoint."""

    taps: dict[str, TapMatching]
    settings: dict[str, Any]  # by config key


def read_checkpoint(run: Run) -> dict[str, Any]:
    """All that a run's checkpoint holds, on the CPU; {} where there is none yet.

    Raises:
        ConfigError: it cannot be read.
    """
    if run.checkpoint is None:
        return {}
    try:
        plain = not run.cfg.DISTILL.UNSAFE_LOADING
        saved = torch.load(run.checkpoint, map_location="cpu", weights_only=plain)
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, pickle.UnpicklingError) as error:
        problem, remedy = f"cannot be read ({type(error).__name__})", "Name another one of the run's folder."
        raise ConfigError("--checkpoint", str(run.checkpoint), problem, remedy) from error
    if not isinstance(saved, dict) or "model" not in saved:
        problem, remedy = "is no checkpoint of a run", "Name one that the run has written."
        raise ConfigError("--checkpoint", str(run.checkpoint), problem, remedy)
    return saved


def read_matching(run: Run, checkpoint: Mapping[str, Any]) -> MatchingState:
    """Take the matching out of a run's checkpoint; nothing is solved again.

    Raises:
        Missing: the run matches no channels, or has no checkpoint yet.
    """
    if not run.methods:
        raise Missing(
            "No method of distillation was at work in this run (DISTILL.ENABLED is False, or DISTILL.METHODS "
            "is empty), so no channels were matched."
        )
    if "mgd" not in run.methods:
        raise Missing(
            f"Of this run's methods, {', '.join(run.methods)}, none matches channels: "
            'that is what "mgd" in DISTILL.METHODS does.'
        )
    if run.checkpoint is None:
        raise Missing("The run has written no checkpoint yet, and the matching is in there.")
    state = checkpoint.get("trainer", {}).get("hooks", {}).get(MATCHING_STATE, {}).get("mgd")
    if not state or not state["_extra_state"]["matchings"]:
        raise Missing(
            f"The checkpoint {run.checkpoint.name} holds weights alone: the trainer's state, in which the "
            "matching is, has been left out."
        )
    extra = state["_extra_state"]
    taps = {}
    for tap, matching in extra["matchings"].items():
        statistics = MatchingStatistics.from_sums(extra["statistics"][tap], torch.device("cpu"))
        norm = STUDENT_NORMS[extra["settings"]["DISTILL.MGD.NORM"]](len(matching["groups"]))
        prefix = f"norms.{module_key(tap)}."
        norm.load_state_dict({k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)})
        taps[tap] = TapMatching(
            groups=matching["groups"],
            cost=statistics.cost(),
            images=statistics.images.item(),
            norm=norm.eval(),
        )
    return MatchingState(taps, extra["settings"])


def group_cost(cost: Tensor, groups: Tensor) -> Tensor:
    """(Cs, Ct) costs, (Cs, G) groups -> (Cs,): the mean cost of each student channel's group."""
    member = groups >= 0
    return (cost.gather(1, groups.clamp_min(0)) * member).sum(1) / member.sum(1)


def order_by_groups(cost: Tensor, groups: Tensor) -> tuple[list[int], list[int]]:
    """Orders of student and teacher channels in which matched pairs lie along the diagonal.

    The students go from the cheapest group to the dearest. The teachers follow: the group of the first
    student, of the second, and so on, each teacher where it is first used; those that nobody uses come last.

    Args:
        cost: (Cs, Ct).
        groups: (Cs, G), -1 at the end of a short group.

    Returns:
        Cs student channels and Ct teacher channels.
    """
    students = group_cost(cost, groups).argsort(stable=True).tolist()
    used = [t for t in groups[students].flatten().tolist() if t >= 0]
    teachers = list(dict.fromkeys([*used, *range(cost.shape[1])]))
    return students, teachers


def group_sizes(groups: Tensor) -> list[int]:
    """Returns the numbers of student channels that have a group of 0, 1, 2, .. teacher channels."""
    return torch.bincount((groups >= 0).sum(1)).tolist()


def teacher_uses(groups: Tensor, num_teacher: int) -> list[int]:
    """Returns the numbers of teacher channels that are in 0, 1, 2, .. groups."""
    return torch.bincount(torch.bincount(groups[groups >= 0], minlength=num_teacher)).tolist()


def typical_channels(cost: Tensor, groups: Tensor, shares: tuple[float, ...]) -> list[int]:
    """Student channels that are so far along the order from the cheapest group (0) to the dearest (1)."""
    students, _ = order_by_groups(cost, groups)
    return [students[round(share * (len(students) - 1))] for share in shares]
