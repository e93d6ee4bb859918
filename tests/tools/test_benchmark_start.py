"""tools/benchmark_start.py: real starts, and the table of their seconds."""

from __future__ import annotations

import json

import benchmark_start
import pytest
from benchmarking.report import lines
from helpers.commands import ROOT, run_tool
from processes import Failed


def test_all_kinds_of_start_are_measured_and_printed(tmp_path):
    file = tmp_path / "figures.json"
    command = ["tools/benchmark_start.py", "--config-file", "configs/studies/shapes/student.yaml"]
    done = run_tool(*command, *("--runs", "1", "--json", file, "--record", "small"), cwd=ROOT)
    record = json.loads(file.read_text())["small"]
    rows = record["start"]["rows"]
    assert [row["start"] for row in rows] == ["stock", "stock and the teacher's load", "this project"]
    stock, floor, distilled = (row["seconds"]["median"] for row in rows)
    assert min(stock, floor, distilled) > 0
    assert rows[2]["seconds"]["ratio"] == distilled / floor
    assert done.stdout.rstrip().endswith("\n".join(lines(record)).rstrip())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "gone.yaml"], "error: --config-file = "),
        (["--runs", "0"], "--runs must be at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        benchmark_start.main(arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_a_failed_start_says_why(tmp_path):
    (tmp_path / "script.py").write_text("import sys; sys.exit('the config is wrong')")
    with pytest.raises(Failed, match=r"(?s)this start failed: .*script\.py\n.*the config is wrong$"):
        benchmark_start.start(ROOT, [str(tmp_path / "script.py")])


def test_the_table_has_a_row_for_each_start():
    def row(name: str, seconds: float) -> dict:
        taken = {"median": seconds, "range": [seconds - 1, seconds + 1], "ratio": seconds / 4}
        return {"start": name, "seconds": taken, "CPU seconds": {**taken, "median": 2 * seconds}}

    start = {"config": "x.yaml", "rows": [row("stock", 2.0), row("this project", 5.0)]}
    printed = list(lines({"start": start}))
    assert printed[4] == "| stock | 2.00 s | 1.00 to 3.00 s | 0.50 | 4.00 s | 0.50 |"
    assert printed[5] == "| this project | 5.00 s | 4.00 to 6.00 s | 1.25 | 10.00 s | 1.25 |"
