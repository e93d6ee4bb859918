"""The order of the packages, read from their imports, and the public names."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mgd_det

PACKAGE = Path(mgd_det.__file__).parent
LEVELS = {
    "run": 6,
    "engine": 5,
    "modeling": 4,
    "data": 4,
    "config": 3,
    "methods": 2,
    "checkpoint": 2,
    "maths": 1,
    "clock": 0,
    "detectron2_compat": 0,
    "detectron2_types": 0,
    "distributed": 0,
    "errors": 0,
    "modules": 0,
    "rng": 0,
}
SHORT_NAMES = ["losses", "margins", "matching", "reducers"]  # modules of maths that are public at the top


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported_modules(name: str) -> set[str]:
    """Returns the modules of the package that a module imports, anywhere in its code."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            # A name that is no module is one of the module that it is imported from.
            found |= {imported if imported in MODULES else base for imported in names}
    return {imported for imported in found if imported in MODULES} - {name}


def room(name: str) -> str:
    """Returns the sub-package, or the module at the top level, that a module belongs to."""
    return name.split(".")[1]


INNER = [name for name in MODULES if name != "mgd_det"]


def test_every_module_belongs_to_a_level():
    assert {room(name) for name in INNER} <= set(LEVELS)
    assert len(list(PACKAGE.glob("*.py"))) <= 12


@pytest.mark.parametrize("name", INNER)
def test_packages_import_only_downwards(name):
    own = room(name)
    others = {room(imported) for imported in imported_modules(name) if imported != "mgd_det"} - {own}
    assert {other: LEVELS[other] for other in others if LEVELS[other] >= LEVELS[own]} == {}


def test_imports_form_no_circle():
    graph = {name: imported_modules(name) - {package_of(name)} for name in INNER}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def package_of(name: str) -> str:
    return name.rpartition(".")[0]


def test_imports_across_packages_are_absolute_and_within_one_relative():
    for name in INNER:
        path = MODULES[name]
        own = f"mgd_det.{room(name)}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                depth = len(path.relative_to(PACKAGE).parts) - 1
                assert node.level <= depth, f"{name} leaves its package by a relative import"
                inside = not node.level and f"{node.module}.".startswith(f"{own}.") and depth
                assert not inside, f"{name} imports {node.module} of its own package absolutely"


@pytest.mark.parametrize("name", SHORT_NAMES)
def test_short_names_are_the_modules_of_maths(name):
    module = importlib.import_module(f"mgd_det.maths.{name}")
    assert importlib.import_module(f"mgd_det.{name}") is module
    assert getattr(mgd_det, name) is module


def test_public_names_can_be_imported():
    import mgd_det.matching
    from mgd_det.losses import pooled_partial_l2

    from mgd_det import DistilledDetector, RematchHook, Trainer, losses, margins, matching, reducers

    assert mgd_det.matching is matching
    assert losses.pooled_partial_l2 is pooled_partial_l2
    assert {DistilledDetector.__name__, RematchHook.__name__, Trainer.__name__} <= set(mgd_det.__all__)
    assert all(hasattr(mgd_det, name) for name in mgd_det.__all__)
    assert callable(reducers.absolute_max) and callable(margins.batch_norm_margin)


def loaded_by(code: str) -> set[str]:
    """Returns the top-level packages that are loaded once a process has run `code`."""
    # The path of this process, so that the package is found however the suite is run.
    command = (
        f"import sys; sys.path[:] = {sys.path!r}\n{code}\nprint(*{{n.split('.')[0] for n in sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import mgd_det; mgd_det.losses, mgd_det.margins, mgd_det.matching, mgd_det.reducers",
        "import importlib, pkgutil, mgd_det.maths, mgd_det.errors, mgd_det.rng\n"
        "for module in pkgutil.iter_modules(mgd_det.maths.__path__, 'mgd_det.maths.'):\n"
        "    importlib.import_module(module.name)",
    ],
    ids=["the package", "its maths"],
)
def test_the_maths_imports_no_detectron2(code):
    loaded = loaded_by(code)
    assert {"mgd_det", "torch"} <= loaded
    assert loaded.isdisjoint({"detectron2", "fvcore", "iopath", "yacs"})
