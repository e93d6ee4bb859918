"""The document that tells what was checked, what was found, and what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from checking.checks import ON_GPU
from commandline import Record

REPORT = """# Reliability

`tools/selfcheck.py` does to short runs of Matching Guided Distillation (MGD) what a long run has to
withstand. It starts the real commands in processes of their own, kills and resumes them, distributes them
over several processes, and compares the results. The networks and images are tiny, so the checks take
minutes, but the code is that of a full run. Run it before a long run, on the machine that the long run is
meant for; `python tools/selfcheck.py --help` lists its options.

On {date}, with seed {seed}, {versions} ({machine}),

```
{command}
```

printed the following lines and wrote this page:

```
{lines}
```

## What the lines mean

{meanings}

## What has not been run

{not_run}- Several GPUs, and NCCL, which connects them.
- Two machines: in two-agents, one machine plays both.
- The loss of a machine: the kernel keeps what a killed process has written, but not through a power cut.
- Network file systems and object stores.
"""


NOT_RUN = {
    ON_GPU: "GPUs: this machine has none.",
    "ranks-resume": "Resuming a run of several processes.",
    "evaluation-kill": "Kills during an evaluation.",
    "signals": "Signals.",
    "full-disk": "Full disks.",
    "concurrent-runs": "Two runs in one folder.",
}


def document(record: Record, lines: Sequence[str], meanings: Mapping[str, str]) -> str:
    """docs/reliability.md, in Markdown.

    Args:
        record: what was checked, when, where, and with what results.
        lines: that were printed.
        meanings: of the names of the checks; those of one meaning share an entry.
    """
    names: dict[str, list[str]] = {}
    for name, meaning in meanings.items():
        names.setdefault(" ".join(meaning.split()), []).append(f"**{name}**")
    return REPORT.format(
        **record,
        lines="\n".join(lines),
        meanings="\n".join(
            textwrap.fill(
                f"- {', '.join(of_one)}: {meaning}", 110, subsequent_indent="  ", break_on_hyphens=False
            )
            for meaning, of_one in names.items()
        ),
        not_run="".join(f"- {words}\n" for check, words in NOT_RUN.items() if check not in record["results"]),
    )
