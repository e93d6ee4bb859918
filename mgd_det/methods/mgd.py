"""Matching Guided Distillation (MGD; Yue, Deng, Zhou; ECCV 2020), not masked generative distillation.

Coordinate descent: with the matching of teacher to student channels fixed, the student is pulled towards
the pooled teacher channels by a parameter-free loss; on a schedule, with the networks fixed, the matching is
solved again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import torch
from torch import Tensor, nn

from mgd_det.distributed import num_ranks, rank
from mgd_det.errors import RESUME_REMEDY, ConfigError
from mgd_det.maths.losses import partial_l2, pooled_partial_l2
from mgd_det.maths.margins import batch_norm_margin
from mgd_det.maths.matching import (
    assign_groups,
    assign_one_to_one,
    assignment_cost,
    changed_share,
    control_cost,
)
from mgd_det.maths.matching_statistics import MatchingStatistics
from mgd_det.maths.norms import STUDENT_NORMS
from mgd_det.maths.reducers import ALIASES, REDUCERS, Reducer, absolute_max, find_reducer
from mgd_det.rng import step_generator

from .base import Features, Inspect, LossInfo, MatchReport, Method, TapInfo, maps_at, register_method
from .settings import choice, module_key, named_taps, tap_weights, unknown

if TYPE_CHECKING:
    from yacs.config import CfgNode

MARGINS = ("auto", "batch_norm", "empirical")
REDUCTIONS = ("mean", "reference")

# The reference implementation divides its sums by these, besides the global batch size.
REFERENCE_DIVISORS = {"res2": 5e7, "res3": 5e7, "res4": 5e6, "res5": 5e6}


class Matching(NamedTuple):
    """The solved matching of one tap."""

    groups: Tensor  # (Cs, G) teacher channels
    margin: Tensor  # (Cs,) of the pooled target
    num_teacher: int  # Ct

    def to(self, device: torch.device) -> Matching:
        return Matching(self.groups.to(device), self.margin.to(device), self.num_teacher)


def _reducer(name: str) -> Reducer:
    found = find_reducer(name)
    if found is None:
        raise unknown("DISTILL.MGD.REDUCER", name, [*REDUCERS, *ALIASES])
    return found


def _reduction(name: str, taps: Sequence[str]) -> str:
    if name == "reference" and not set(taps) <= set(REFERENCE_DIVISORS):
        raise ConfigError(
            "DISTILL.MGD.REDUCTION",
            name,
            f"the reference has constants for the taps {list(REFERENCE_DIVISORS)} alone",
            'Use those taps, or "mean".',
        )
    choice("DISTILL.MGD.REDUCTION", name, REDUCTIONS)
    return name


@register_method("mgd")
class MGD(Method):
    """Pulls every student channel towards the teacher channels matched to it.

    Args:
        channels: student channels of each tap, in the taps' order.
        reducer: "absolute_max", "sparse", "random_drop", "simple_max", or "amp", "sm", "rd", "sp".
        margin: "batch_norm", "empirical", or "auto": batch norm where the tap has one whose parameters
            are the moments of its output, else empirical.
        norm: on the student's features, in training only: "GN", "BN", or "" for none.
        weights: of the loss, one for all taps or one for each.
        reduction: "mean" over all unpadded elements, or "reference": the sum over all elements, divided
            by the reference implementation's constants and the global batch size.
        spread: use every teacher channel also where the student's number does not divide theirs.
        num_ranks: number of processes that train together, each on its share of the batch.
        rank: this process's number.

    Raises:
        ConfigError: an unknown choice, or "reference" at a tap for which the reference has no constant.
    """

    matches = True

    def __init__(
        self,
        *,
        channels: Mapping[str, int],
        reducer: str = "absolute_max",
        margin: str = "auto",
        norm: str = "GN",
        weights: Sequence[float] = (0.05,),
        reduction: str = "mean",
        spread: bool = False,
        num_ranks: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__()
        self.taps = list(channels)
        self.channels = dict(channels)
        self.reducer = _reducer(reducer)
        self.margin_kind = choice("DISTILL.MGD.MARGIN", margin, MARGINS)
        self.reduction = _reduction(reduction, self.taps)
        self.spread = spread
        self.weights = tap_weights("DISTILL.MGD.LOSS_WEIGHTS", weights, self.taps)
        layer = STUDENT_NORMS[choice("DISTILL.MGD.NORM", norm, STUDENT_NORMS)]
        self.norms = nn.ModuleDict({module_key(tap): layer(c) for tap, c in channels.items()})
        self.num_ranks, self.rank = num_ranks, rank
        self._teacher: Mapping[str, TapInfo] = {}
        self._matchings: dict[str, Matching] = {}
        self._observed: dict[str, MatchingStatistics] = {}  # by this process, since the last absorb
        self._statistics: dict[str, MatchingStatistics] = {}  # the same in all processes
        self._step = 0  # training steps so far, which seed random reducers
        self._matching_settings: dict[str, str | bool] = {
            "DISTILL.MGD.REDUCER": ALIASES.get(reducer, reducer),
            "DISTILL.MGD.MARGIN": margin,
            "DISTILL.MGD.SPREAD": spread,
            "DISTILL.MGD.NORM": norm,
        }

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Inspect, teacher: Inspect) -> MGD:
        taps = named_taps("DISTILL.MGD.TAPS", cfg.TAPS)
        return cls(
            channels={tap: info.channels for tap, info in student(taps).items()},
            reducer=cfg.REDUCER,
            margin=cfg.MARGIN,
            norm=cfg.NORM,
            weights=cfg.LOSS_WEIGHTS,
            reduction=cfg.REDUCTION,
            spread=cfg.SPREAD,
            num_ranks=num_ranks(),
            rank=rank(),
        )

    def attach(self, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]) -> None:
        for tap in self.taps:
            if self.margin_kind == "batch_norm" and teacher[tap].batch_norm is None:
                raise ConfigError(
                    "DISTILL.MGD.MARGIN",
                    self.margin_kind,
                    f"the teacher's tap {tap!r} has no batch norm whose parameters are the moments of "
                    "its output (none at all, or one with its statistics folded in)",
                    'Use "empirical", or "auto", which chooses it there.',
                )
        self._teacher = teacher

    @property
    def ready(self) -> bool:  # type: ignore[override]
        return all(tap in self._matchings for tap in self.taps)

    @property
    def losses(self) -> dict[str, LossInfo]:
        return {f"loss_mgd_{tap}": LossInfo(tap, weight) for tap, weight in self.weights.items()}

    def weight_key(self, loss: str) -> str:
        return "LOSS_WEIGHTS"

    def forward(self, features: Features) -> dict[str, Tensor]:
        losses = {}
        device = maps_at(features, self.taps[0]).student.device
        noise = step_generator(device, self._step, self.rank) if self.reducer.random else None
        self._step += 1
        for name, (tap, weight) in self.losses.items():
            student, teacher, mask, *_ = maps_at(features, tap)
            losses[name] = self._loss(tap, student, teacher, mask, noise) * weight
        return losses

    def _loss(
        self,
        tap: str,
        student: Tensor,
        teacher: Tensor,
        mask: Tensor | None,
        noise: torch.Generator | None,
    ) -> Tensor:
        groups, margin, _ = self._matching(tap, student.device)
        reduction, divisor = "mean", 1.0
        if self.reduction == "reference":  # the reference counts padding, too
            mask, reduction = None, "sum"
            divisor = REFERENCE_DIVISORS[tap] * len(student) * self.num_ranks
        student = self.norms[module_key(tap)](student, mask)
        if self.reducer.features is absolute_max:
            return pooled_partial_l2(student, teacher, groups, margin, reduction, mask) / divisor
        random = {"generator": noise} if self.reducer.random else {}
        target = self.reducer.features(teacher, groups, **random)
        return partial_l2(student, target, margin, reduction, mask) / divisor

    def observe(self, features: Features) -> None:
        for tap in self.taps:
            student, teacher, mask, *_ = maps_at(features, tap)
            if tap not in self._observed:
                self._observed[tap] = MatchingStatistics(student.shape[1], teacher.shape[1], student.device)
            self._observed[tap].add(student, teacher, mask)

    def absorb(self, sum_over_ranks: Callable[[Tensor], None], decay: float) -> None:
        observed, self._observed = self._observed, {}
        for tap in self.taps:
            observed[tap].reduce(sum_over_ranks)
            if decay and tap in self._statistics:
                # Add to the new ones, which are on the features' device; a checkpoint's are on the CPU.
                observed[tap].add_scaled(decay, self._statistics[tap])
            self._statistics[tap] = observed[tap]

    def solve(self) -> list[MatchReport]:
        solved = {tap: self._solve_tap(tap, self._statistics[tap]) for tap in self.taps}
        # Update all taps or none: where one fails, the others keep their matching.
        self._matchings.update({tap: matching for tap, (matching, _) in solved.items()})
        return [report for _, report in solved.values()]

    def _solve_tap(self, tap: str, statistics: MatchingStatistics) -> tuple[Matching, MatchReport]:
        if not statistics.images.item() > 0:
            raise FloatingPointError(
                f"the features at tap {tap!r} were NaN or infinite in all {int(statistics.skipped.item())} "
                "images that the matching is solved from: the student has diverged, or the teacher is broken"
            )
        cost = statistics.cost().cpu()
        # A control is the optimum of a cost that does not depend on the features.
        kind, seed = self.control
        wanted = cost if kind == "solved" else control_cost(kind, *cost.shape, seed=seed)
        if self.reducer.one_to_one:
            groups = assign_one_to_one(wanted)
        else:
            groups = assign_groups(wanted, spread=self.spread)
        batch_norm = self._teacher[tap].batch_norm
        if self.margin_kind == "empirical" or batch_norm is None:
            margin = statistics.margin()
        else:
            margin = batch_norm_margin(*batch_norm)
        # Seed afresh, so that every process picks the same members.
        random = {"generator": torch.Generator().manual_seed(0)} if self.reducer.random else {}
        pooled = self.reducer.margin(margin.cpu(), groups, **random)
        num_teacher = cost.shape[1]
        before = self._matchings.get(tap)
        return Matching(groups, pooled, num_teacher), MatchReport(
            name=f"mgd_{tap}",
            cost=assignment_cost(cost, groups),
            changed=1.0 if before is None else changed_share(before.groups, groups, num_teacher),
            images=round(statistics.images.item()),
            skipped=round(statistics.skipped.item()),
        )

    def _matching(self, tap: str, device: torch.device) -> Matching:
        matching = self._matchings[tap]
        if matching.groups.device != device:
            matching = self._matchings[tap] = matching.to(device)
        return matching

    @property
    def settings(self) -> dict[str, str | bool | int]:
        """Settings, by config key, that a matching depends on; one made with others is of no use."""
        return {
            **self._matching_settings,
            "DISTILL.EXPERIMENT.ASSIGNMENT": self.control.kind,
            "DISTILL.EXPERIMENT.ASSIGNMENT_SEED": self.control.seed,
        }

    def get_extra_state(self) -> dict[str, object]:
        matchings = {
            tap: matching.to(torch.device("cpu"))._asdict() for tap, matching in self._matchings.items()
        }
        statistics = {
            tap: {name: tensor.cpu() for name, tensor in statistics.sums.items()}
            for tap, statistics in self._statistics.items()
        }
        return {
            "matchings": matchings,
            "statistics": statistics,
            "step": self._step,
            "settings": self.settings,
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        matchings = {tap: Matching(**matching) for tap, matching in state["matchings"].items()}
        if matchings and list(matchings) != self.taps:
            raise ConfigError(
                "DISTILL.MGD.TAPS",
                self.taps,
                f"the checkpoint holds a matching for the taps {list(matchings)}",
                RESUME_REMEDY,
            )
        for tap, matching in matchings.items():
            if tap in self._teacher and matching.num_teacher != self._teacher[tap].channels:
                raise ConfigError(
                    "DISTILL.TEACHER.CONFIG_FILE",
                    "this teacher",
                    f"it has {self._teacher[tap].channels} channels at {tap!r}, and the checkpoint holds a "
                    f"matching to {matching.num_teacher}",
                    RESUME_REMEDY,
                )
        for key, value in state["settings"].items():
            if matchings and value != self.settings[key]:
                raise ConfigError(
                    key,
                    self.settings[key],
                    f"the checkpoint holds a matching made with {value!r}",
                    RESUME_REMEDY,
                )
        self._matchings = matchings
        self._statistics = {
            tap: MatchingStatistics.from_sums(sums, torch.device("cpu"))
            for tap, sums in state["statistics"].items()
        }
        self._step = state["step"]
