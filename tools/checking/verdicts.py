"""Checks that may fail in any way, and what is said of them."""

from __future__ import annotations

import time
from typing import Callable

from commandline import Figures
from processes import Failed


def result_of(check: Callable[..., Figures], *arguments: object) -> Figures:
    """Returns the verdict and the figures of a check."""
    start, figures, failure = time.monotonic(), {}, ""
    try:
        figures = check(*arguments)
    except Exception as error:  # the other checks are to be run all the same
        failure = " ".join((str(error) if isinstance(error, Failed) else repr(error)).split())
    seconds = round(time.monotonic() - start)
    return {"passed": not failure, "seconds": seconds, "figures": figures, "failure": failure}


def line(name: str, result: Figures) -> str:
    """Returns the line that is printed for a check."""
    figures = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in result["figures"].items())
    found = ", ".join(figures) or result["failure"]
    return f"{'PASS' if result['passed'] else 'FAIL'} {name}: {found} ({result['seconds']} s)"
