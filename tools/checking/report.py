"""The document that tells what was checked, what was found, and what it means."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from checking.precision import ON_GPU

REPORT = """# Reliability

What a long run of Matching Guided Distillation has to withstand, done to short ones on purpose: real
commands in processes of their own, killed, resumed, spread over ranks and compared. The networks and images
are tiny, so that it takes minutes; the code is what a full run goes through. To be run, before a long run,
on the machine that this is meant for; `python tools/selfcheck.py --help` tells more.

On {date}, with seed {seed}, {versions} ({machine}),

```
{command}
```

printed, and wrote into this file:

```
{lines}
```

## What the lines mean

{meanings}

## What has not been run

{not_run}- Several GPUs, and NCCL, which connects them.
- Two machines: in two-agents one machine plays both.
- Resuming a run of several processes, and kills during an evaluation.
- The loss of a machine: what a killed process has written is safe with the kernel, which a power cut ends.
- Network file systems and object stores.
"""


def document(record: Mapping[str, Any], lines: Sequence[str], meanings: Mapping[str, str]) -> str:
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
        not_run="" if ON_GPU in record["results"] else "- GPUs: this machine has none.\n",
    )
