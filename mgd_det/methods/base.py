"""The interface of a distillation method, and the table of those there are.

A method is a module that turns the tapped features of student and teacher into named losses. It knows
tensors and taps, neither Detectron2 nor the trainer. A new one takes a class and a line::

    @register_method("my_method")
    class MyMethod(Method): ...

and its own config node `DISTILL.MY_METHOD`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, TypeVar

from torch import Tensor, nn


class TapFeatures(NamedTuple):
    """What one tap hands to a method in one step."""

    student: Tensor  # (N, Cs, H, W), in the student's autograd graph
    teacher: Tensor  # (N, Ct, H, W), no gradient
    mask: Tensor | None  # (N, 1, H, W) bool, True at unpadded positions; None where all are


class TapInfo(NamedTuple):
    """What is known of one tap of one network before any step."""

    channels: int
    stride: int
    trainable: bool  # whether a gradient at the tap reaches any weight
    # Affine parameters (C,) of the batch norm before the tap, None where there is none whose
    # parameters are the moments of its output.
    batch_norm: tuple[Tensor, Tensor] | None = None


class LossInfo(NamedTuple):
    """What is known of one loss before any step."""

    tap: str  # at which it acts
    weight: float  # that it is multiplied by


class MatchReport(NamedTuple):
    """What solving one assignment brought."""

    name: str  # of the loss that uses it, without "loss_"
    cost: float  # mean over the matched pairs, 0 to 4
    changed: float  # share of used teacher channels that changed partner; 1 the first time
    images: int  # that the statistics come from, older ones decayed
    skipped: int  # images left out because their features were not finite


class Method(nn.Module):
    """Base class. Subclasses define `forward`, `losses` and, where they match channels, the rest.

    Learned parts (norms, adapters) are ordinary parameters of the module, and what else must survive a
    resume goes through `get_extra_state` / `set_extra_state`; both end up in the trainer's checkpoint,
    never in the student's weights.

    Attributes:
        taps: names of the taps that `forward` needs.
        ready: False as long as the method needs a matching that has not been solved.
        num_ranks, rank: processes that train together, each on its share of the batch; and this one.
    """

    taps: Sequence[str]
    ready: bool = True
    num_ranks: int = 1
    rank: int = 0

    @classmethod
    def from_config(cls, cfg: Any, inspect: Callable[[Sequence[str]], Mapping[str, TapInfo]]) -> Method:
        """Build from the method's config node.

        Args:
            cfg: the node `DISTILL.<NAME>`.
            inspect: names of taps -> what is known of them on the student's side.
        """
        raise NotImplementedError

    def forward(self, features: Mapping[str, TapFeatures]) -> dict[str, Tensor]:
        """Named scalar losses, weights applied; names start with `loss_`."""
        raise NotImplementedError

    @property
    def losses(self) -> dict[str, LossInfo]:
        """The losses that `forward` returns, by name."""
        raise NotImplementedError

    def observe(self, features: Mapping[str, TapFeatures]) -> None:
        """Gather statistics for the matching from the features of one batch."""

    def absorb(self, sum_over_ranks: Callable[[Tensor], None], decay: float) -> None:
        """Take what was observed by all processes into the statistics that the matching is solved from.

        Args:
            sum_over_ranks: replaces a tensor, in place, by its sum over all processes.
            decay: what earlier statistics count from now on; 0 forgets them.
        """

    def solve(self) -> list[MatchReport]:
        """Solve the matching from the absorbed statistics."""
        return []

    def attach_teacher(self, teacher: Mapping[str, TapInfo]) -> None:
        """Check, before training, that the method can work with these taps of the teacher.

        Raises:
            ConfigError: it can't.
        """


_METHODS: dict[str, type[Method]] = {}
_M = TypeVar("_M", bound=type[Method])


def register_method(name: str) -> Callable[[_M], _M]:
    """Class decorator that makes a method available as `name` in `DISTILL.METHODS`."""

    def register(cls: _M) -> _M:
        if _METHODS.setdefault(name, cls) is not cls:
            raise ValueError(f"a distillation method named {name!r} is already registered")
        return cls

    return register


def find_method(name: str) -> type[Method] | None:
    """The method class registered as `name`, None where there is none."""
    return _METHODS.get(name)


def method_names() -> list[str]:
    """Names of all registered methods."""
    return sorted(_METHODS)
