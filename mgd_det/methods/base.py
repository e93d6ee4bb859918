"""The interface of a distillation method, and the table of those there are.

A method is a module that turns features of student and teacher into named losses. It knows tensors and taps,
neither Detectron2 nor the trainer. A new one takes a class and a line, which gives it the config keys
`DISTILL.MY_METHOD.TAPS` and `DISTILL.MY_METHOD.WEIGHT`::

    @register_method("my_method", TAPS=["res4"], WEIGHT=1.0)
    class MyMethod(Method): ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, TypeVar

from torch import Tensor, nn

from mgd_det.errors import RESUME_REMEDY, ConfigError

HEAD = "head"  # the tap of the features before the classifier, wherever the detector has it
PREDICTIONS = "predictions"  # the tap of what the detector's head predicts
HEAD_TAPS = (HEAD, PREDICTIONS)


class TapFeatures(NamedTuple):
    """What one tap hands to a method in one step."""

    student: Tensor  # (N, Cs, H, W), in the student's autograd graph
    teacher: Tensor  # (N, Ct, H, W), no gradient
    mask: Tensor | None  # (N, 1, H, W) bool, True at positions that count (unpadded); None where all do
    foreground: Tensor | None = None  # (N, 1, H, W) bool, True in ground-truth boxes; if asked for


class Prediction(NamedTuple):
    """What a head predicts for M anchors, points or proposals."""

    scores: Tensor  # (M, K) logits; K + 1 of a softmax for proposals
    boxes: Tensor  # (M, 4) regression outputs; (M, 4 K) where each class has its own
    centerness: Tensor | None = None  # (M,) logits


class PredictionPair(NamedTuple):
    """What the tap `PREDICTIONS` hands to a method in one step."""

    student: Prediction  # in the student's autograd graph
    teacher: Prediction  # no gradient
    mask: Tensor | None  # (M,) bool, True at rows that count; None where all do


# A plain tap gives one TapFeatures; `HEAD` one for each level of a dense head, or one of shape (R, C, 1, 1)
# for the R proposals of a two-stage one.
Features = Mapping[str, Any]


class HeadInfo(NamedTuple):
    """What is known of a detector's head before any step."""

    kind: str  # "anchors", "points" or "proposals"
    num_classes: int
    boxes: dict[str, Any]  # what a box output means, part by part; where equal, those of two heads compare
    classifier_std: float  # of the weights of the classification layer
    softmax: bool  # whether a location has one class at most, so that scores are a softmax's


class TapInfo(NamedTuple):
    """What is known of one tap of one network before any step."""

    channels: int
    stride: Any  # in pixels; for a dense head those of its levels, for proposals None
    trainable: bool  # whether a gradient at the tap reaches any weight
    # Affine parameters (C,) of the batch norm before the tap, None where there is none whose
    # parameters are the moments of its output.
    batch_norm: tuple[Tensor, Tensor] | None = None
    head: HeadInfo | None = None  # of the taps in `HEAD_TAPS`


# Names of taps -> what is known of them, in one network.
Inspect = Callable[[Sequence[str]], Mapping[str, TapInfo]]


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


class AssignmentControl(NamedTuple):
    """What takes the place of a solved assignment in an experiment."""

    kind: str = "solved"  # or "random" or "identity", see `maths.matching.control_cost`
    seed: int = 0  # of "random"


class Method(nn.Module):
    """Base class. Subclasses define `from_config`, `forward`, `losses`, and the rest if they match channels.

    Learned parts (norms, adapters) are ordinary parameters of the module, and what else must survive a
    resume goes through `get_extra_state` / `set_extra_state`; both end up in the trainer's checkpoint,
    never in the student's weights.

    Attributes:
        taps: names of the taps that `forward` needs.
        wants_foreground: whether `TapFeatures.foreground` is to be filled.
        matches: whether it has a matching to solve; `observe`, `absorb` and `solve` are then called.
        control: what the assignment is instead of solved, of a method that matches; set when it is built.
        ready: False as long as the method needs a matching that has not been solved.
        num_ranks, rank: processes that train together, each on its share of the batch; and this one.
    """

    taps: Sequence[str]
    wants_foreground: bool = False
    matches: bool = False
    control: AssignmentControl = AssignmentControl()
    ready: bool = True
    num_ranks: int = 1
    rank: int = 0

    @classmethod
    def from_config(cls, cfg: Any, student: Inspect, teacher: Inspect) -> Method:
        """Build from the method's config node.

        Args:
            cfg: the node `DISTILL.<NAME>`.
            student: what is known of taps in the student.
            teacher: the same in the teacher, whose network is built for it; only its widths and
                strides are right, since no weights are loaded.
        """
        raise NotImplementedError

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Named scalar losses, weights applied; names start with `loss_`."""
        raise NotImplementedError

    @property
    def losses(self) -> dict[str, LossInfo]:
        """The losses that `forward` returns, by name."""
        raise NotImplementedError

    def weight_key(self, loss: str) -> str:
        """The key, in the method's config node, of a loss's weight; `LOSS_WEIGHTS` holds one for each tap."""
        return "WEIGHT"

    def get_extra_state(self) -> dict[str, Any]:
        """What must survive a resume beside the parameters: tensors and plain values."""
        return {"taps": list(self.taps)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take up the state of an earlier run.

        Raises:
            ConfigError: that run's method had other taps.
        """
        if list(state["taps"]) != list(self.taps):
            raise ConfigError(
                "DISTILL.METHODS",
                list(self.taps),
                f"the checkpoint is of the taps {state['taps']}",
                RESUME_REMEDY,
            )

    def observe(self, features: Features) -> None:
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

    def attach(self, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]) -> None:
        """Check, before training, that the method can work with these taps of the two networks.

        Raises:
            ConfigError: it can't.
        """


_METHODS: dict[str, type[Method]] = {}
_DEFAULTS: dict[str, dict[str, Any]] = {}
_M = TypeVar("_M", bound=type[Method])


def register_method(name: str, **defaults: Any) -> Callable[[_M], _M]:
    """Class decorator that makes a method available as `name` in `DISTILL.METHODS`.

    Args:
        name: in lower case.
        defaults: keys of its config node `DISTILL.<NAME>`, which `add_mgd_config` adds to a config.
    """

    def register(cls: _M) -> _M:
        if _METHODS.setdefault(name, cls) is not cls:
            raise ValueError(f"a distillation method named {name!r} is already registered")
        _DEFAULTS[name] = defaults
        return cls

    return register


def find_method(name: str) -> type[Method] | None:
    """The method class registered as `name`, None where there is none."""
    return _METHODS.get(name)


def method_defaults() -> dict[str, dict[str, Any]]:
    """Of all registered methods, by name, the config keys that they were registered with."""
    return {name: dict(_DEFAULTS[name]) for name in sorted(_METHODS)}
