"""The self-check itself: that it finds what is wrong, ends what it starts, and made the document."""

from __future__ import annotations

import json

import pytest
import selfcheck
import torch
from checking.checks import largest_change, next_start, ranks_apart
from checking.jobs import Job, deviation, equal_values, run, within
from checking.verdicts import line, result_of
from helpers.commands import ROOT, run_tool
from processes import Failed


def test_equal_values_are_counted_without_times():
    state = {
        "model": {"w": torch.tensor([1.0, 2.0])},
        "metrics": [{"loss": 3.0, "time": 1.0, "data_time": 2}],
    }
    other = {
        "model": {"w": torch.tensor([1.0, 2.0])},
        "metrics": [{"loss": 3.0, "time": 9.0, "data_time": 0}],
    }
    assert equal_values(state, other) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0000002]), "b": [1]},
        {"a": torch.tensor([1.0]), "b": [1]},
        {"a": [1.0, 2.0], "b": [1]},
        {"a": torch.tensor([1.0, 2.0]), "b": [1.0]},
        {"a": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([1.0, 2.0]), "b": [1, 2]},
    ],
)
def test_one_differing_value_fails(other):
    state = {"a": torch.tensor([1.0, 2.0]), "b": [1]}
    for pair in ((state, other), (other, state)):
        with pytest.raises(Failed, match=r"values differ, such as /[ab]"):
            equal_values(*pair)


def test_deviations_are_relative_to_the_largest_value_of_a_tensor():
    expected = {"a": torch.tensor([0.0, 4.0]), "b": 2.0}
    assert deviation({"a": torch.tensor([1.0, 4.0]), "b": 2.0}, expected) == 0.25
    with pytest.raises(Failed, match="different tensors"):
        deviation({"a": expected["a"]}, expected)
    assert within(0.25, {"deviation": 0.25}) == {"deviation": 0.25}
    for value in (0.26, float("nan")):
        with pytest.raises(Failed, match="deviation"):
            within(0.25, {"deviation": value})


def test_ranks_must_match_alike_and_agree_within_the_tolerance():
    def state(groups: list[int], loss: float) -> dict:
        tensors = {name: {"x": torch.tensor([1.0])} for name in ("margins", "gradients")}
        return {"groups": {"res3": torch.tensor(groups)}, "losses": {"x": loss}, **tensors}

    found = ranks_apart(state([0, 1], 1 + 2**-11), state([0, 1], 1.0), 1e-3)
    assert found["share of equal assignments"] == 1
    assert found["deviation of losses"] == 2**-11
    with pytest.raises(Failed, match=r"only 50\.0% of the assignments"):
        ranks_apart(state([0, 2], 1.0), state([0, 1], 1.0), 1e-3)
    with pytest.raises(Failed, match="deviation of losses"):
        ranks_apart(state([0, 1], 1.002), state([0, 1], 1.0), 1e-3)


def test_changes_of_losses_are_relative_and_the_largest_counts():
    assert largest_change({"a": 1.1, "b": 3.0}, {"a": 1.0, "b": 2.0}) == pytest.approx(0.5)


def test_a_state_that_cannot_be_resumed_is_found(tmp_path):
    assert next_start(tmp_path) == 0
    torch.save({"model": {"w": torch.zeros(1000)}, "iteration": 7}, tmp_path / "model_0000007.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000007.pth")
    assert next_start(tmp_path) == 8
    whole = (tmp_path / "model_0000007.pth").read_bytes()
    (tmp_path / "model_0000007.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Failed, match="unresumable"):
        next_start(tmp_path)
    (tmp_path / "model_0000007.pth").unlink()
    with pytest.raises(Failed, match="unresumable"):
        next_start(tmp_path)


FAMILY = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("started", flush=True)
time.sleep(600)
"""


def test_nothing_outlives_a_job_that_fails(tmp_path):
    with pytest.raises(Failed, match="to fail"), Job(tmp_path / "log", "-c", FAMILY) as job:
        job.until(lambda: "started" in job.output() and len(job.processes()) == 2, "both ran")
        raise Failed("to fail")
    assert job.processes() == []


def test_a_command_that_ends_too_soon_fails_with_its_last_words(tmp_path):
    with pytest.raises(Failed, match=r"exit code 3.*last words"):
        run(tmp_path / "log", "-c", "import sys; print('last words'); sys.exit(3)")
    job = run(tmp_path / "log", "-c", "print('last words')")
    with pytest.raises(Failed, match=r"exit code 0 before it was killed.*last words"):
        job.until(lambda: False, "it was killed")


def test_a_check_that_fails_in_any_way_has_a_verdict(tmp_path):
    for error in (Failed("too\nmany"), KeyError("loss")):

        def check(config, folder, error=error):
            raise error

        result = result_of(check, tmp_path, tmp_path)
        assert not result["passed"]
        assert line("x", result).startswith(("FAIL x: too many (", "FAIL x: KeyError('loss') ("))


def test_the_command_prints_a_line_and_writes_figures_and_report(tmp_path):
    """Also a resume without DISTILL.EXACT_RESUME, which is the check that it runs."""
    files = ("--json", tmp_path / "figures.json", "--report", tmp_path / "report.md")
    printed = run_tool(ROOT / "tools/selfcheck.py", "--only", "stock-resume", *files).stdout
    assert printed.startswith("PASS stock-resume: resumed at iteration ")
    assert printed.count("\n") == 1
    record = json.loads((tmp_path / "figures.json").read_text())
    assert record["results"]["stock-resume"]["figures"]["values equal bit for bit"] > 20
    text = (tmp_path / "report.md").read_text()
    assert text == selfcheck.report(record)
    assert printed in text
    assert "**stock-resume**" in text


def test_the_document_is_the_report_of_the_committed_figures():
    record = json.loads((ROOT / "results/selfcheck.json").read_text())
    assert (ROOT / "docs/reliability.md").read_text() == selfcheck.report(record)
    assert all(result["passed"] for result in record["results"].values())
    assert {"kill-pass", "kill-online", "stock-resume", "ranks"} <= set(record["results"])


IGNORED = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in the background of a shell
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from processes import Process
code = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
with Process(Path(sys.argv[2]), "-c", code) as process:
    process.finish()
    print(process.output())
"""


def test_commands_get_their_signals_however_the_tool_was_started(tmp_path):
    assert run_tool("-c", IGNORED, ROOT / "tools", tmp_path / "log").stdout == "True\n\n"
