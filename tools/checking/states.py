"""Loading and comparing the states that runs leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from processes import Failed

Figures = dict[str, Any]  # of a check, by the names that its line gives them


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def final(output: Path) -> dict[str, Any]:
    return load(output / "model_final.pth")


def equal_values(found: Any, expected: Any) -> int:
    """Returns the number of values in two states, which must be the same in both, bit for bit."""
    a, b = dict(leaves(found)), dict(leaves(expected))
    names = a.keys() | b.keys()
    if differing := sorted(name for name in names if not same(a.get(name), b.get(name))):
        raise Failed(f"{len(differing)} of {len(names)} values differ, such as {', '.join(differing[:3])}")
    return len(names)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and value of each leaf of nested tables and lists; times are left out."""
    if isinstance(value, (dict, list)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{name}/{key}")
    elif "time" not in name and "seconds" not in name:
        yield name, value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return type(a) is type(b) and a == b


def deviation(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Returns the largest difference in any tensor, relative to the largest value of that tensor."""
    if list(found) != list(expected):
        raise Failed("the two runs name different tensors")
    pairs = [(torch.as_tensor(found[n]).double(), torch.as_tensor(v).double()) for n, v in expected.items()]
    return max(((a - b).abs().max() / b.abs().max().clamp_min(1e-12)).item() for a, b in pairs)


def within(limit: float, figures: Figures) -> Figures:
    for name, value in figures.items():
        if not value <= limit:
            raise Failed(f"{name} {value:.3g}, more than {limit:g}")
    return figures
