"""Pool the teacher channels of a group into one target channel.

The functions are pure and know nothing of Detectron2. They follow Matching Guided Distillation (ECCV 2020),
section 3.3. Those of features take the teacher's, (N, Ct, H, W) of any dtype, and the groups, (Cs, G) teacher
channels with -1 at the end of a short group; they return (N, Cs, H, W) in the teacher's dtype. Those of
margins take (Ct,) and the groups, and return (Cs,). AMP here is absolute max pooling, not mixed precision.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from .matching import group_members


def absolute_max(teacher: Tensor, groups: Tensor) -> Tensor:
    """Return the signed value of the member with the largest magnitude, at every position (AMP).

    This is the paper's choice for detection. Of two members of equal magnitude the first one wins.
    """
    members = group_members(groups)
    target = teacher[:, members[:, 0]]
    for column in members.T[1:]:
        candidate = teacher[:, column]
        target = torch.where(candidate.abs() > target.abs(), candidate, target)
    return target


def simple_max(teacher: Tensor, groups: Tensor) -> Tensor:
    """Return the largest value in the group, at every position (simple max pooling, SP)."""
    members = group_members(groups)
    target = teacher[:, members[:, 0]]
    for column in members.T[1:]:
        target = torch.maximum(target, teacher[:, column])
    return target


def sparse(teacher: Tensor, groups: Tensor) -> Tensor:
    """Return the one matched channel (sparse matching, SM).

    Raises:
        ValueError: a group holds more than one channel.
    """
    if groups.shape[1] != 1:
        raise ValueError(f"sparse matching takes groups of one channel, got {groups.shape[1]}")
    return teacher[:, groups[:, 0]]


def random_drop(teacher: Tensor, groups: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return one member at random, drawn for every image, channel and position (random drop, RD).

    Args:
        teacher: (N, Ct, H, W).
        groups: (Cs, G).
        generator: source of the draw, on the teacher's device; None takes torch's global one.
    """
    n, _, h, w = teacher.shape
    sizes = (groups >= 0).sum(1)
    draw = torch.rand((n, len(groups), h, w), generator=generator, device=teacher.device)
    pick = (draw * sizes[:, None, None]).long()  # in [0, size) at each position
    target = teacher[:, groups[:, 0]]
    for rank, column in enumerate(group_members(groups).T[1:], start=1):
        target = torch.where(pick == rank, teacher[:, column], target)
    return target


def mean_margin(margin: Tensor, groups: Tensor) -> Tensor:
    """Return the mean margin of the members."""
    member = groups >= 0
    return (margin[group_members(groups)] * member).sum(1) / member.sum(1)


def max_margin(margin: Tensor, groups: Tensor) -> Tensor:
    """Return the largest margin of the members."""
    return margin[group_members(groups)].amax(1)


def matched_margin(margin: Tensor, groups: Tensor) -> Tensor:
    """Return the margin of the one matched channel."""
    return margin[groups[:, 0]]


def random_margin(margin: Tensor, groups: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return the margin of a member drawn at random.

    Args:
        margin: (Ct,).
        groups: (Cs, G).
        generator: source of the draw, on the groups' device; None takes torch's global one.
    """
    sizes = (groups >= 0).sum(1)
    draw = torch.rand(len(groups), generator=generator, device=groups.device)
    return margin[groups.gather(1, (draw * sizes).long()[:, None])[:, 0]]


class Reducer(NamedTuple):
    """A way to pool teacher channels.

    Attributes:
        features: pools the teacher's features.
        margin: pools the teacher's margins.
        one_to_one: whether a group must hold one channel.
        random: whether `features` and `margin` take a `generator` as well.
    """

    features: Callable[..., Tensor]
    margin: Callable[..., Tensor]
    one_to_one: bool = False
    random: bool = False


REDUCERS = {
    "absolute_max": Reducer(absolute_max, mean_margin),
    "sparse": Reducer(sparse, matched_margin, one_to_one=True),
    "random_drop": Reducer(random_drop, random_margin, random=True),
    "simple_max": Reducer(simple_max, max_margin),
}
ALIASES = {"amp": "absolute_max", "sm": "sparse", "rd": "random_drop", "sp": "simple_max"}


def find_reducer(name: str) -> Reducer | None:
    """Return the reducer of that name or alias, or None if there is none."""
    return REDUCERS.get(ALIASES.get(name, name))
