"""The lines and figures of the gate in a report."""

from __future__ import annotations

from typing import Any

from comparing.cells import cell, interval, number
from comparing.gate import SEEDS, Verdict
from comparing.summary import CONFIDENCE

PASSES = {None: "not known yet", True: "passes", False: "**fails**"}


def gate_figures(verdict: Verdict) -> dict[str, Any]:
    """Returns what report.json has of the gate: the three APs by themselves, the rest under `gate`."""
    aps = ("teacher_ap", "baseline_ap", "baseline_ap_twice")
    figures = verdict._asdict()
    gate = {**figures.pop("gate")._asdict(), **{k: v for k, v in figures.items() if k not in aps}}
    return {**{name: figures[name] for name in aps}, "gate": {**gate, "passed": verdict.passed}}


def warning(verdict: Verdict) -> str:
    """Returns in words why the gate is not passed."""
    gate, reasons = verdict.gate, []
    if verdict.converged is None:
        reasons.append(f"the baseline has {verdict.n} of at least {SEEDS} seeds at both lengths")
    elif not verdict.converged:
        gained = number(verdict.gain, "+.2f")
        reasons.append(f"the baseline gains {gained} AP from twice the length, not less than {gate.max_gain}")
    if verdict.teacher_leads is None:
        reasons.append("how far the teacher is above the baseline is not known yet")
    elif not verdict.teacher_leads:
        lead = number(verdict.lead, "+.2f")
        reasons.append(f"the teacher is {lead} AP above the baseline, not at least {gate.min_lead}")
    return (
        "**This study has not passed its gate, so its gains may be no more than those of a faster start:** "
        f"on {gate.data}, {'; '.join(reasons)}."
    )


def gate_lines(verdict: Verdict) -> list[str]:
    """Returns an empty line and the markdown table of the gate."""
    gate = verdict.gate
    gained = number(verdict.gain, "+.2f")
    if verdict.half_width is not None:
        gained += f" ({CONFIDENCE:.0%}: {interval(verdict.gain, verdict.half_width)})"
    rows = [
        (f"baseline, seeds: {verdict.baseline_seeds}", number(verdict.baseline_ap, ".2f"), "-", "-"),
        (
            f"twice the length, seeds that both have: {verdict.n}",
            number(verdict.baseline_ap_twice, ".2f"),
            "-",
            "-",
        ),
        ("teacher", number(verdict.teacher_ap, ".2f"), "-", "-"),
        (
            "distance of the baseline from convergence: gained by twice the length",
            gained,
            f"below {gate.max_gain:+.2f}",
            PASSES[verdict.converged],
        ),
        (
            "teacher above the baseline",
            number(verdict.lead, "+.2f"),
            f"at least {gate.min_lead:+.2f}",
            PASSES[verdict.teacher_leads],
        ),
    ]
    head = ["", f"| gate, on {cell(gate.data)} | AP | required | |", "|---|---:|---:|---|"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows)]
