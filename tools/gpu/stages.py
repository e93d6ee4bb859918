"""The stages of `tools/gpu_check.py`: commands of this repository, and how their figures are read."""

from __future__ import annotations

import json
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Callable

from _checkout import ROOT
from commandline import Figures
from processes import Failed, Process, Word

from mgd_det.methods import method_defaults

# Runs in a folder, for so many seconds at most.
Part = Callable[[Path, float], Figures]

TESTS = (
    *("tests/maths/test_kernels.py", "tests/maths/test_golden.py", "tests/maths/test_losses.py"),
    "tests/maths/test_matching_statistics.py",
)
BFLOAT16 = ("--dtype", "bfloat16")
DTYPES: dict[str, tuple[Word, ...]] = {"bfloat16": BFLOAT16, "float32": ()}
FULL = ("--images", 16, "--size", 800, 1216)
TINY = (
    *("--config-file", "configs/demo/student_mgd.yaml", "--images", 2, "--size", 64, 96),
    *("--", "DISTILL.TEACHER.CONFIG_FILE", "configs/demo/teacher.yaml"),
)


def all_stages(device: str, tiny: bool) -> dict[str, dict[str, Part]]:
    """Returns the parts of each stage by name."""
    on = "-gpu" if device == "cuda" else ""
    common = ("--device", device)
    network: tuple[Word, ...] = (*common, *(TINY if tiny else FULL))
    methods = ("--methods", *(["mgd", "logits"] if tiny else method_defaults()))
    many, some, few = (("--runs", 1 if tiny else runs) for runs in (20, 10, 4))
    loss = "loss" if tiny else "compiled"  # which takes a compiler long, and tests have it by itself

    def each_dtype(name: str, *arguments: Word) -> dict[str, Part]:
        return {f"{name}-{dtype}": benchmark(*also, *arguments) for dtype, also in DTYPES.items()}

    return {
        "correctness": {
            f"tests{on}": device_tests(device, *(TESTS[1:2] if tiny else TESTS)),
            f"mixed-precision{on}": check(f"mixed-precision{on}"),
            f"resumed-precision{on}": check(f"resumed-precision{on}"),
        },
        "speed": {
            **each_dtype("loss", "--only", loss, *many, *common),
            "losses-bfloat16": benchmark(*BFLOAT16, "--only", "losses", *methods, *some, *network),
        },
        "steps": {
            **each_dtype("steps", "--only", "steps", *methods, *few, *network),
            **each_dtype("memory", "--only", "memory", *methods, *few, *network),
        },
        "teacher": {
            **each_dtype("teacher", "--only", "teacher", *some, *network),
            **each_dtype("cheaper", "--only", "cheaper", *some, *network),
            **each_dtype("overlap", "--only", "overlap", *some, *network),
        },
        "tools": {f"tools{on}": check(f"tools{on}")},
        "ranks": {f"ranks{on}": check(f"ranks{on}"), **({"ranks-nccl": check("ranks-nccl")} if on else {})},
    }


def benchmark(*arguments: Word) -> Part:
    """A record of tools/benchmark.py."""
    words = [str(word) for word in arguments]

    def part(folder: Path, seconds: float) -> Figures:
        file = folder / "figures.json"
        run(folder, seconds, ROOT / "tools/benchmark.py", "--json", file, "--record", "gpu", *words)
        command = shlex.join(["tools/benchmark.py", *words])
        return {**json.loads(file.read_text())["gpu"], "command": command}

    return part


def check(name: str) -> Part:
    """The figures of a check of tools/selfcheck.py."""

    def part(folder: Path, seconds: float) -> Figures:
        file = folder / "figures.json"
        try:
            run(folder, seconds, ROOT / "tools/selfcheck.py", "--only", name, "--json", file)
        except Failed as error:
            if file.exists():  # it says more than the end of the log
                raise Failed(json.loads(file.read_text())["results"][name]["failure"]) from error
            raise
        return json.loads(file.read_text())["results"][name]["figures"]

    return part


def device_tests(device: str, *files: str) -> Part:
    """Those tests of the suite that put their tensors on the device of TEST_DEVICE: the golden cases, the
    pooled loss and its gradient against what defines them (dtypes, ragged groups, masks, memory layouts, and
    sizes up to that of the figures), and the matching.
    """

    def part(folder: Path, seconds: float) -> Figures:
        file = folder / "tests.xml"
        command: tuple[Word, ...] = (
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--junitxml",
            file,
            *files,
        )
        try:
            run(folder, seconds, *command, TEST_DEVICE=device)
        except Failed as error:
            if file.exists():
                names = [case.get("name") for case in cases(file) if broken(case)]
                raise Failed(f"{len(names)} tests failed: {', '.join(map(str, names))}") from error
            raise
        skipped = sum(case.find("skipped") is not None for case in cases(file))
        return {"tests passed": len(cases(file)) - skipped, "skipped": skipped}

    return part


def cases(file: Path) -> list[ElementTree.Element]:
    return list(ElementTree.parse(file).getroot().iter("testcase"))


def broken(case: ElementTree.Element) -> bool:
    return case.find("failure") is not None or case.find("error") is not None


def run(folder: Path, seconds: float, *command: Word, **environment: str) -> None:
    """Run a Python command to its end, which must be a good one."""
    with Process(folder / "log", *command, environment=environment) as process:
        process.finish(seconds)
