"""The report of a comparison: a table in markdown, its figures in JSON, and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commandline import versions_in_words
from comparing.cells import cell, count, interval, number
from comparing.curves import curves
from comparing.gate import Verdict
from comparing.gate_report import gate_figures, gate_lines, warning
from comparing.picture import draw
from comparing.published import Published, published_lines
from comparing.summary import CONFIDENCE, Pair, Record, Row, compare_pairs, summarise

NOTES = """\
AP is COCO box AP after the last iteration, mean over the seeds, beside its standard deviation (s.d.). The
difference is *paired*: the mean, over the seeds that both have, of the arm's AP minus that of the baseline
with the same seed, which saw the same images in the same order from the same initial weights, as far as the
arms do not set data, batch or weights otherwise, and before anything is inherited. Intervals are
{confidence:.0%} (Student's t), each for its own comparison: they are not corrected for the number of arms.
A run that detected nothing counts as an AP of 0.

Seconds per iteration and memory are medians over the runs, each beside what multiple of the baseline's it is.
The seconds are those of training steps, without the passes that solve the matching, evaluations and start-up.
Memory is the peak of the process, or of the GPU where one was used.
"""
SKIPPED = """
With `DISTILL.TEACHER.EVERY` the seconds are those of a step without the teacher, as most are;
docs/performance.md has the mean step.
"""
PICTURE = "Paired differences to the baseline, with their intervals"
CURVES = f"{PICTURE}; below them AP over the iterations, mean over the seeds within one standard deviation"
MIXED = """
**The runs were made under different conditions, see {what} above: their seconds and memory do not compare,
and their AP may differ by rounding.**
"""


def write_report(
    folder: Path,
    records: Sequence[Record],
    *,
    iterations: Mapping[str, int],
    baseline: str,
    seeds: Sequence[int],
    facts: Mapping[str, str],
    pairs: Sequence[tuple[str, str]] = (),
    verdict: Verdict | None = None,
    published: Mapping[str, Sequence[Published]] | None = None,
) -> str:
    """Write report.md, report.json and report.png, and return the table of the first.

    Args:
        folder: where to.
        records: of the finished runs, one or more.
        iterations: of every arm, in the order of the report.
        baseline: the arm that the others are compared with.
        seeds: that every arm is to have.
        facts: what the experiment was, by name: the report's head.
        pairs: of arms that are compared with each other, too.
        verdict: how the experiment's gate was met, None if it has none.
        published: figures of others, by arm.
    """
    rows = summarise(records, iterations, baseline, len(seeds))
    compared = compare_pairs(records, pairs)
    names = labels(rows, baseline)
    tables = "\n".join(
        [
            table(rows, baseline, names),
            *pair_lines(compared, names),
            *(gate_lines(verdict) if verdict else []),
            *published_lines(rows, names, published or {}),
        ]
    )
    found = curves(records, iterations)
    warnings = [warning(verdict)] if verdict and not verdict.passed else []
    text = markdown(tables, facts, records, warnings, CURVES if found else PICTURE)
    (folder / "report.md").write_text(text, encoding="utf-8")
    arms = [row._asdict() for row in rows]
    report: dict[str, Any] = {
        **facts,
        **circumstances(records),
        "baseline": baseline,
        "seeds": list(seeds),
        "arms": arms,
    }
    if compared:
        report["pairs"] = [pair._asdict() for pair in compared]
    if published:
        figures = {arm: [figure._asdict() for figure in of_arm] for arm, of_arm in published.items()}
        report["published"] = figures
    if found:
        report["curves"] = {arm: [list(point) for point in points] for arm, points in found.items()}
    if verdict:
        report.update(gate_figures(verdict))
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(rows, baseline, names, found, folder / "report.png")
    return "\n\n".join([*warnings, tables])


def labels(rows: Sequence[Row], baseline: str) -> dict[str, str]:
    """Returns the names of the arms; those of another length than the baseline's include it."""
    common = next(row.iterations for row in rows if row.arm == baseline)
    lengths = {row.arm: "" if row.iterations == common else f" ({row.iterations} iterations)" for row in rows}
    return {arm: arm + length for arm, length in lengths.items()}


def markdown(
    tables: str, facts: Mapping[str, str], records: Sequence[Record], warnings: Sequence[str], picture: str
) -> str:
    """Returns report.md: warnings, facts of the experiment, tables, and what the picture shows."""
    found = circumstances(records)
    mixed = [name for name in ("machine", "versions") if len(found[name]) > 1]
    dates = " to ".join(dict.fromkeys([found["date"][0], found["date"][-1]]))
    facts = {
        **facts,
        "machine": "; ".join(found["machine"]),
        "versions": "; ".join(found["versions"]),
        "commit": "; ".join(found["commit"]),
        "date": dates,
    }
    skipped = any("DISTILL.TEACHER.EVERY" in record.get("overrides", ()) for record in records)
    notes = [NOTES.format(confidence=CONFIDENCE), *([SKIPPED] if skipped else [])]
    notes += [MIXED.format(what=" and ".join(mixed))] if mixed else []
    lines = [
        "# Comparison of recipes",
        "",
        *(f"{warning}\n" for warning in warnings),
        "Recipes of Matching Guided Distillation (MGD), each trained with the same seeds.",
        "",
        *("| | |", "|---|---|", *(f"| {name} | {cell(value)} |" for name, value in facts.items())),
        "",
        tables,
        "",
        "".join(notes),
        f"![{picture}](report.png)",
    ]
    return "\n".join(lines) + "\n"


def circumstances(records: Sequence[Record]) -> dict[str, list[str]]:
    """Returns the machines, versions, commits and dates of the runs, each once."""
    return {
        "machine": sorted({r["machine"] for r in records}),
        "versions": sorted({versions_in_words(r["versions"]) for r in records}),
        "commit": sorted({r.get("commit", "not recorded") for r in records}),
        "date": sorted({r["date"] for r in records}),
    }


def table(rows: Sequence[Row], baseline: str, names: Mapping[str, str]) -> str:
    """Returns the rows as a markdown table."""
    lines = [
        f"| arm | n | AP | s.d. | AP50 | AP - {cell(baseline)} | {CONFIDENCE:.0%} interval "
        "| s/iteration | relative | memory, MiB | relative |",
        "|---|" + "---:|" * 10,
    ]
    for row in rows:
        cells = [
            *(cell(names[row.arm]), count(row)),
            *(number(row.ap, ".2f"), number(row.ap_sd, ".2f"), number(row.ap50, ".2f")),
            *(number(row.difference, "+.2f"), interval(row.difference, row.half_width)),
            *(number(row.seconds_per_iteration, ".3f"), number(row.seconds_ratio, ".2f")),
            *(number(row.memory_mib, ".0f"), number(row.memory_ratio, ".2f")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pair_lines(pairs: Sequence[Pair], names: Mapping[str, str]) -> list[str]:
    """Returns an empty line and a markdown table of the compared pairs; nothing without pairs."""
    if not pairs:
        return []
    lines = ["", f"| arm | against | n | AP - AP | {CONFIDENCE:.0%} interval |", "|---|---|---:|---:|---:|"]
    for pair in pairs:
        cells = [
            cell(names[pair.arm]),
            cell(names[pair.other]),
            str(pair.n),
            number(pair.difference, "+.2f"),
            interval(pair.difference, pair.half_width),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
