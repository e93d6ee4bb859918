"""The gate of a study: is its baseline near convergence, and its teacher well above it?

What distillation gains where this does not hold may be no more than a faster start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from comparing.summary import half_width, mean, paired
from comparing.tables import check_table

from mgd_det.errors import ConfigError

GATE_KEYS: dict[str, type] = {"data": str, "twice": str, "max_gain": float, "min_lead": float}
SEEDS = 2  # of both lengths, at least


class Gate(NamedTuple):
    """The limits that an experiment sets for its baseline and its teacher."""

    data: str  # the data set that both are measured on
    twice: str  # the arm that is the baseline at twice the length
    max_gain: float  # AP; twice the length has to gain less
    min_lead: float  # AP by which the teacher has to be above the baseline, at least


class Verdict(NamedTuple):
    """The figures of a gate and whether it is passed; None where something has not been measured."""

    gate: Gate
    teacher_ap: float | None
    baseline_ap: float | None  # mean over its seeds
    baseline_seeds: int  # how many it has
    baseline_ap_twice: float | None  # mean over the seeds that both lengths have
    n: int  # how many both have
    gain: float | None  # of twice the length, over those
    half_width: float | None  # of its confidence interval
    lead: float | None  # of the teacher over the baseline
    converged: bool | None
    teacher_leads: bool | None

    @property
    def passed(self) -> bool:
        return bool(self.converged and self.teacher_leads)


def read_gate(table: dict[str, Any], lengths: Mapping[str, int], baseline: str) -> Gate:
    """Returns the gate in the table `gate` of an experiment file.

    Args:
        table: as it was read.
        lengths: number of iterations of every arm.
        baseline: the arm whose double is wanted.

    Raises:
        ConfigError: a key or a value cannot be used.
    """
    check_table("gate: ", table, GATE_KEYS, required=list(GATE_KEYS))
    gate = Gate(**table)
    if lengths.get(gate.twice) != 2 * lengths[baseline]:
        problem = f"not an arm of {2 * lengths[baseline]} iterations, twice those of the baseline"
        remedy = "Add one with the baseline's overrides, and name it here."
        raise ConfigError("gate: twice", gate.twice, problem, remedy)
    return gate


def judge(
    gate: Gate, teacher_ap: float | None, once: Mapping[int, float], twice: Mapping[int, float]
) -> Verdict:
    """Returns whether the gate is passed.

    Args:
        gate: what is required.
        teacher_ap: on the gate's data set, None while it has not been measured.
        once: AP of the baseline on that set, by seed.
        twice: the same at twice the length.
    """
    gains = paired(twice, once)
    baseline_ap, gain = mean(list(once.values())), mean(list(gains.values()))
    lead = None if teacher_ap is None or baseline_ap is None else teacher_ap - baseline_ap
    return Verdict(
        gate=gate,
        teacher_ap=teacher_ap,
        baseline_ap=baseline_ap,
        baseline_seeds=len(once),
        baseline_ap_twice=mean([twice[seed] for seed in gains]),
        n=len(gains),
        gain=gain,
        half_width=half_width(list(gains.values())),
        lead=lead,
        converged=None if gain is None or len(gains) < SEEDS else gain < gate.max_gain,
        teacher_leads=None if lead is None else lead >= gate.min_lead,
    )
