"""tools/gpu_check.py: its stages on the CPU at tiny size, what is run again, and what the documents take."""

from __future__ import annotations

import json
from pathlib import Path

import benchmark
import gpu_check
import pytest
import selfcheck
from commandline import write_json
from gpu import records, wheels
from gpu.stages import all_stages, device_tests
from helpers.commands import ROOT, run_tool
from processes import Failed

NEW = {"machine": "m", "versions": "v", "code": "c", "device": "cpu", "tiny": True, "date": "today"}


def counted(calls: list[str], name: str, failing: bool = False):
    def part(folder: Path, seconds: float) -> dict:
        calls.append(name)
        (folder / "log").write_text("written")
        if failing:
            raise Failed("it does not work")
        return {"seconds left": seconds}

    return part


def test_a_stage_goes_on_where_it_was(tmp_path, capsys):
    calls: list[str] = []
    parts = {"one": counted(calls, "one"), "two": counted(calls, "two", failing=True)}
    assert not gpu_check.run_stage("tools", parts, tmp_path, NEW)
    results = json.loads((tmp_path / "tools.json").read_text())["results"]
    assert {name: result["passed"] for name, result in results.items()} == {"one": True, "two": False}
    assert 0 < results["one"]["figures"]["seconds left"] <= gpu_check.SECONDS
    assert "FAIL two: it does not work" in capsys.readouterr().out

    parts["two"] = counted(calls, "two")
    assert gpu_check.run_stage("tools", parts, tmp_path, NEW)
    assert calls == ["one", "two", "two"]
    assert gpu_check.run_stage("tools", parts, tmp_path, NEW, again=True)
    assert calls[3:] == ["one", "two"]


@pytest.mark.parametrize("other", records.SAME)
def test_nothing_is_kept_of_another_machine_code_or_version(other, tmp_path):
    calls: list[str] = []
    for new in (NEW, {**NEW, "date": "tomorrow"}, {**NEW, other: "another"}):
        gpu_check.run_stage("tools", {"one": counted(calls, "one")}, tmp_path, new)
    assert calls == ["one", "one"]


def test_a_part_that_has_no_time_left_fails_and_is_no_result(tmp_path, monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(gpu_check, "SECONDS", 0)
    assert not gpu_check.run_stage("tools", {"one": counted(calls, "one")}, tmp_path, NEW)
    assert calls == []


@pytest.mark.parametrize(
    "stage, part",
    [
        ("speed", "loss-float32"),
        ("speed", "losses-bfloat16"),
        ("steps", "steps-float32"),
        ("teacher", "overlap-bfloat16"),
    ],
)
def test_measurements_on_the_cpu_at_tiny_size(stage, part, tmp_path, monkeypatch):
    """By the very commands of a GPU; each is one process. The others differ from these in the dtype alone,
    or have tests of their own.
    """
    monkeypatch.setattr("gpu.stages.run", run_forked)
    figures = all_stages("cpu", tiny=True)[stage][part](tmp_path, 60)
    assert figures["command"].startswith("tools/benchmark.py --")
    assert str(tmp_path) not in figures["command"]
    assert "\n".join(benchmark.lines(figures))
    assert figures["device"] == "cpu"


def run_forked(folder: Path, seconds: float, *command, **environment) -> None:
    run_tool(*command, cwd=ROOT, env=environment)


def test_failing_tests_are_named(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import os\n"
        "def test_device(): assert os.environ['TEST_DEVICE'] == 'meta'\n"
        "def test_fails(): assert False\n"
    )
    with pytest.raises(Failed, match=r"^1 tests failed: test_fails$"):
        device_tests("meta", str(tmp_path / "test_it.py"))(tmp_path, 60)
    passing = device_tests("meta", f"{tmp_path / 'test_it.py'}::test_device")(tmp_path, 60)
    assert passing == {"tests passed": 1, "skipped": 0}


def test_every_check_that_a_stage_asks_for_exists():
    for device in ("cuda", "cpu"):
        stages = all_stages(device, tiny=False)
        assert (
            tuple(stages)
            == gpu_check.STAGES
            == (*records.CHECKED[:1], *records.MEASURED, *records.CHECKED[1:])
        )
        asked = {name for stage in records.CHECKED for name in stages[stage]} - {"tests", selfcheck.ON_DEVICE}
        assert asked <= set(selfcheck.all_checks(0, 0))


def test_documents_take_what_has_passed_on_a_gpu_at_full_size(tmp_path):
    def stage(name: str, **changes) -> None:
        results = {
            "loss": {"passed": True, "figures": {"loss": name}},
            "steps": {"passed": False, "figures": {}},
        }
        write_json(
            tmp_path / f"{name}.json", {**NEW, "device": "cuda", "tiny": False, "results": results, **changes}
        )

    assert records.measured(tmp_path) == records.checked(tmp_path) == []
    stage("speed")
    stage("steps", tiny=True)
    stage("teacher", device="cpu")
    stage("tools")
    stage("ranks")
    assert records.measured(tmp_path) == [{"loss": "speed"}]
    (found,) = records.checked(tmp_path)
    assert found["results"]["loss"]["figures"] == {"loss": "ranks"}


def test_the_documents_are_those_of_the_committed_figures():
    assert (ROOT / "docs/performance.md").read_text() == benchmark.report()
    assert (ROOT / "docs/reliability.md").read_text() == selfcheck.committed_report()


def test_without_a_gpu_it_is_one_line(tmp_path):
    env = {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": ""}
    done = run_tool("tools/gpu_check.py", "--out", tmp_path / "out", cwd=ROOT, check=False, env=env)
    assert done.returncode == gpu_check.NO_GPU
    assert done.stderr.startswith("error: torch sees no GPU") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wheels_are_pinned_and_leave_out_what_comes_with_torch():
    *lines, detectron2 = wheels.wheels()
    assert detectron2.startswith("# ") and "--wheel-dir" in detectron2
    assert all("==" in line for line in lines)
    names = {line.split("==")[0].lower() for line in lines}
    assert {"fvcore", "yacs", "pytest", "scikit-learn", "scipy"} <= names
    assert names.isdisjoint({"torch", "torchvision", "numpy", "pillow", "filelock", "mypy", "ruff"})
