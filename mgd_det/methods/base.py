"""The interface of a distillation method, and the table of registered methods.

A method is a module that turns features of student and teacher into named losses. It knows tensors and taps,
but neither Detectron2 nor the trainer. A new one is a class and a decorator, which gives it the config keys
`DISTILL.MY_METHOD.TAPS` and `DISTILL.MY_METHOD.WEIGHT`::

    @register_method("my_method", TAPS=["res4"], WEIGHT=1.0)
    class MyMethod(Method): ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, TypeVar, Union

from torch import Tensor

from mgd_det.errors import RESUME_REMEDY, ConfigError
from mgd_det.modules import ModuleWithProperties

if TYPE_CHECKING:
    from yacs.config import CfgNode

HEAD = "head"  # the tap of the features before the classifier, wherever the detector has it
PREDICTIONS = "predictions"  # the tap of what the detector's head predicts
CLASS_MAPS = "classes"  # the tap of a dense head's class logits as maps, a channel for each anchor and class
CONFIDENCE = "confidence"  # the tap of a dense teacher's `TapFeatures.confidence`, which no student has
# The tap of what a dense teacher's head predicts from the student's features, half-way through the two heads.
CROSS_PREDICTIONS = "cross_predictions"
HEAD_TAPS = (HEAD, PREDICTIONS, CLASS_MAPS, CONFIDENCE, CROSS_PREDICTIONS)


class TapFeatures(NamedTuple):
    """One tap's features in one step."""

    student: Tensor  # (N, Cs, H, W), in the student's autograd graph
    teacher: Tensor  # (N, Ct, H, W), no gradient
    mask: Tensor | None  # (N, 1, H, W) bool, True at positions that count (unpadded); None where all do
    foreground: Tensor | None = None  # (N, 1, H, W) bool, True in ground-truth boxes; if asked for
    # (N, 1, H, W) in [0, 1], the teacher's largest class probability at each position; if asked for
    confidence: Tensor | None = None


class Prediction(NamedTuple):
    """A head's predictions for M anchors, points or proposals."""

    scores: Tensor  # (M, K) logits; K + 1 of a softmax for proposals
    boxes: Tensor  # (M, 4) regression outputs; (M, 4 K) where each class has its own
    centerness: Tensor | None = None  # (M,) logits


class PredictionPair(NamedTuple):
    """The features of the tap `PREDICTIONS` in one step, or of `CROSS_PREDICTIONS`.

    At the latter both sides are in the teacher's terms, and boxes are decoded: (M, 4) corners in pixels.
    """

    student: Prediction  # in the student's autograd graph
    teacher: Prediction  # no gradient
    mask: Tensor | None  # (M,) bool, True at rows that count; None where all do
    # What the student divides its own losses by in this step, if the tap is `CROSS_PREDICTIONS`.
    normalizer: float | None = None


# A plain tap gives one TapFeatures; `HEAD` one for each level of a dense head, or one of shape (R, C, 1, 1)
# for the R proposals of a two-stage one; `CLASS_MAPS` one for each level; `PREDICTIONS` and
# `CROSS_PREDICTIONS` a pair.
FeaturesOfTap = Union[TapFeatures, "list[TapFeatures]", PredictionPair]
Features = Mapping[str, FeaturesOfTap]


def maps_at(features: Features, tap: str) -> TapFeatures:
    """Returns the features of a tap in the backbone."""
    found = features[tap]
    assert isinstance(found, TapFeatures)
    return found


def levels_at(features: Features, tap: str) -> list[TapFeatures]:
    """Returns the features of `HEAD` or `CLASS_MAPS` by level; a tap in the backbone has one level."""
    found = features[tap]
    if isinstance(found, TapFeatures):
        return [found]
    assert isinstance(found, list)
    return found


def predictions_in(features: Features, tap: str = PREDICTIONS) -> PredictionPair:
    """Returns the features of `PREDICTIONS` or `CROSS_PREDICTIONS`."""
    found = features[tap]
    assert isinstance(found, PredictionPair)
    return found


class BoxMeaning(NamedTuple):
    """Conventions of a head's box outputs; outputs of two heads can be compared where these are equal."""

    coding: Mapping[str, object]  # parameters of the box transform
    anchors: Sequence[Sequence[Sequence[float]]] | None = None  # dense: (x0, y0, x1, y1) by level and cell
    anchor_offset: float | None = None  # dense: of the anchors' centres, in strides
    columns: int | None = None  # proposals: box outputs for each


class HeadInfo(NamedTuple):
    """Properties of a detector's head."""

    kind: str  # "anchors", "points" or "proposals"
    num_classes: int
    boxes: BoxMeaning
    classifier_std: float  # of the weights of the classification layer
    softmax: bool  # True where a location has one class at most, so that scores are a softmax's


class TapInfo(NamedTuple):
    """Properties of one tap of one network."""

    channels: int
    stride: int | Sequence[int] | None  # in pixels; of a dense head its levels', of proposals None
    trainable: bool  # True where a gradient at the tap reaches a weight
    # Affine parameters (C,) of the batch norm before the tap, None where there is none whose
    # parameters are the moments of its output.
    batch_norm: tuple[Tensor, Tensor] | None = None
    head: HeadInfo | None = None  # of the taps in `HEAD_TAPS`
    channels_last: bool = False  # True where the network has (N, H, W, C) there; methods get (N, C, H, W)


# Names of taps -> their properties, in one network.
Inspect = Callable[[Sequence[str]], Mapping[str, TapInfo]]


class LossInfo(NamedTuple):
    """Properties of one loss."""

    tap: str  # at which it acts
    weight: float  # that it is multiplied by


class MatchReport(NamedTuple):
    """Outcome of solving one assignment."""

    name: str  # of the loss that uses it, without "loss_"
    cost: float  # mean over the matched pairs, 0 to 4
    changed: float  # share of used teacher channels that changed partner; 1 the first time
    images: int  # that the statistics come from, older ones decayed
    skipped: int  # images left out because their features were not finite


class AssignmentControl(NamedTuple):
    """An assignment that takes the place of the solved one in an experiment."""

    kind: str = "solved"  # or "random" or "identity", see `maths.matching.control_cost`
    seed: int = 0  # of "random"


class Method(ModuleWithProperties):
    """Base class. Subclasses define `from_config`, `forward`, `losses`, and the rest if they match channels.

    Learned parts (norms, adapters) are ordinary parameters of the module. Other values that must survive a
    resume go through `get_extra_state` and `set_extra_state`. Both end up in the trainer's checkpoint, never
    in the student's weights.

    Attributes:
        taps: names of the taps that `forward` needs.
        wants_foreground: asks for `TapFeatures.foreground`, for which the images need labels.
        wants_confidence: asks for `TapFeatures.confidence`, for which the teacher needs a dense head.
        matches: True for a method with a matching to solve; `observe`, `absorb` and `solve` are then called.
        control: replaces the solved assignment of a method that matches; set when it is built.
        ready: False as long as the method needs a matching that has not been solved.
    """

    taps: Sequence[str]
    wants_foreground: bool = False
    wants_confidence: bool = False
    matches: bool = False
    control: AssignmentControl = AssignmentControl()
    ready: bool = True

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Inspect, teacher: Inspect) -> Method:
        """Build from the method's config node.

        Args:
            cfg: the node `DISTILL.<NAME>`.
            student: gives properties of taps in the student.
            teacher: gives those in the teacher, whose network is built for it; only its widths and
                strides are right, since no weights are loaded.
        """
        raise NotImplementedError

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Returns named scalar losses, weights applied; names start with `loss_`."""
        raise NotImplementedError

    @property
    def losses(self) -> dict[str, LossInfo]:
        """Properties of the losses that `forward` returns, by name."""
        raise NotImplementedError

    def weight_key(self, loss: str) -> str:
        """Returns the key of a loss's weight in the config node; `LOSS_WEIGHTS` has one for each tap."""
        return "WEIGHT"

    def get_extra_state(self) -> dict[str, object]:
        """Returns what must survive a resume beside the parameters: tensors and plain values."""
        return {"taps": list(self.taps)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take up the state of an earlier run.

        Raises:
            ConfigError: that run's method had other taps.
        """
        if list(state["taps"]) != list(self.taps):
            names = [name for name, cls in _METHODS.items() if cls is type(self)]
            raise ConfigError(
                f"DISTILL.{names[0].upper()}.TAPS" if names else "DISTILL.METHODS",
                list(self.taps),
                f"the checkpoint is of the taps {state['taps']}",
                RESUME_REMEDY,
            )

    def observe(self, features: Features) -> None:
        """Gather statistics for the matching from the features of one batch."""

    def absorb(self, sum_over_ranks: Callable[[Tensor], None], decay: float) -> None:
        """Add what all processes observed to the statistics that the matching is solved from.

        Args:
            sum_over_ranks: replaces a tensor, in place, by its sum over all processes.
            decay: factor on earlier statistics; 0 forgets them.
        """

    def solve(self) -> list[MatchReport]:
        """Solve the matching from the absorbed statistics."""
        return []

    def attach(self, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]) -> None:
        """Check, before training, that the method can work with these taps of the two networks.

        Raises:
            ConfigError: it cannot.
        """


_METHODS: dict[str, type[Method]] = {}
_DEFAULTS: dict[str, dict[str, object]] = {}
_M = TypeVar("_M", bound=type[Method])


def register_method(name: str, **defaults: object) -> Callable[[_M], _M]:
    """Class decorator that makes a method available as `name` in `DISTILL.METHODS`.

    Args:
        name: in lower case.
        defaults: keys and default values of its config node `DISTILL.<NAME>`.
    """

    def register(cls: _M) -> _M:
        if _METHODS.setdefault(name, cls) is not cls:
            raise ValueError(f"a distillation method named {name!r} is already registered")
        _DEFAULTS[name] = defaults
        return cls

    return register


def find_method(name: str) -> type[Method] | None:
    """Returns the method class registered as `name`, None where there is none."""
    return _METHODS.get(name)


def method_defaults() -> dict[str, dict[str, object]]:
    """Returns the config keys that each method was registered with, by the method's name."""
    return {name: dict(_DEFAULTS[name]) for name in sorted(_METHODS)}
