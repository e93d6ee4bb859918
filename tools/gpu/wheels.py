"""The packages that an image with torch and torchvision still needs, for a machine without a network."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, requires

from _checkout import ROOT
from install_detectron2 import REQUIRES, VERSION
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

IMAGE = ("torch", "torchvision")
# What mgd_det and Detectron2 import, the demonstration's photographs, and what runs the tests.
OURS = (
    *("fastjsonschema", "filelock", "numpy", "psutil", "scipy", "packaging"),
    *("scikit-learn", "pytest", "hypothesis"),
)


def wheels() -> list[str]:
    """Returns the pinned requirements, and how to make the wheel of Detectron2."""
    needed = closure([*REQUIRES, *OURS]) - closure(IMAGE)
    pinned = pins()
    return [
        *(pinned.get(name, name) for name in sorted(needed)),
        f"# and detectron2 {VERSION} in pure Python: tools/install_detectron2.py --wheel-dir DIR",
    ]


def pins() -> dict[str, str]:
    """Returns the lines of requirements-pinned.txt by the name of their package."""
    lines = (ROOT / "requirements-pinned.txt").read_text().splitlines()
    return {
        canonicalize_name(line.split("==")[0]): line.strip()
        for line in lines
        if line.strip() and not line.startswith("#")
    }


def closure(requirements: Iterable[str]) -> set[str]:
    """Returns packages and all that these need, as the environment of this process has them."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            waiting += [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # it is listed all the same
            continue
    return found
