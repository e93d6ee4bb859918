"""The document that tells what was checked, what was found, and what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from checking.verdicts import line
from commandline import Record

REPORT = """# Reliability

`tools/selfcheck.py` does to short runs of Matching Guided Distillation (MGD) what a long run has to
withstand. It starts the real commands in processes of their own, kills and resumes them, distributes them
over several processes, and compares the results. The networks and images are tiny, so the checks take
minutes, but the code is that of a full run. Run it before a long run, on the machine that the long run is
meant for; `python tools/selfcheck.py --help` lists its options. `make gpu` makes the checks that need a GPU.

{runs}
## What the lines mean

{meanings}

## What has not been run

{not_run}- Several GPUs, and NCCL, which connects them.
- Two machines: in two-agents, one machine plays both.
- The loss of a machine: the kernel keeps what a killed process has written, but not through a power cut.
- Network file systems and object stores.
"""

RUN = """On {date}, {seed}{versions} ({machine}),

```
{command}
```

printed the following lines:

```
{lines}
```
"""

NOT_RUN = {
    "tests-gpu": "The tests of the maths on a GPU.",
    "mixed-precision-gpu": "Mixed precision on a GPU.",
    "resumed-precision": "Resuming in each precision.",
    "resumed-precision-gpu": "Resuming in each precision on a GPU.",
    "tools": "The tools after a training.",
    "tools-gpu": "The tools after a training on a GPU.",
    "ranks-gpu": "Two processes on one GPU.",
    "ranks-resume": "Resuming a run of several processes.",
    "evaluation-kill": "Kills during an evaluation.",
    "signals": "Signals.",
    "full-disk": "Full disks.",
    "concurrent-runs": "Two runs in one folder.",
}


def document(records: Sequence[Record], meanings: Mapping[str, str]) -> str:
    """docs/reliability.md, in Markdown.

    Args:
        records: what was checked, when, where, and with what results.
        meanings: of the names of the checks; those of one meaning share an entry.
    """
    names: dict[str, list[str]] = {}
    for name, meaning in meanings.items():
        names.setdefault(" ".join(meaning.split()), []).append(f"**{name}**")
    found = {name for record in records for name in record["results"]}
    return REPORT.format(
        runs="\n".join(map(run_lines, records)),
        meanings="\n".join(
            textwrap.fill(
                f"- {', '.join(of_one)}: {meaning}", 110, subsequent_indent="  ", break_on_hyphens=False
            )
            for meaning, of_one in names.items()
        ),
        not_run="".join(f"- {words}\n" for check, words in NOT_RUN.items() if check not in found),
    )


def run_lines(record: Record) -> str:
    lines = "\n".join(line(name, result) for name, result in record["results"].items())
    seed = f"with seed {record['seed']}, " if "seed" in record else ""
    return RUN.format(**{**record, "lines": lines, "seed": seed})
