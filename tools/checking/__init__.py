"""The checks of `tools/selfcheck.py`, and what they are made of."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]  # what a check measured, by what its line calls it


class Failed(Exception):
    """A check found what must not be; its text says what."""
