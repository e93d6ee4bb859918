"""The helpers of all commands: they refuse files that cannot be written, before the work begins."""

from __future__ import annotations

from pathlib import Path

import benchmark
import benchmark_start
import demo
import matrix
import pytest
import selfcheck
from commandline import output_file, output_folder
from helpers.commands import ROOT

from mgd_det.errors import ConfigError


def test_the_folder_of_a_file_is_made_and_its_path_does_not_move(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    file = output_file("--json", Path("a/b/figures.json"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    file.write_text("{}")
    assert (tmp_path / "a/b/figures.json").read_text() == "{}"


def test_a_folder_is_no_file_and_a_file_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"--json = '{tmp_path}': is a folder\. Name a file\."):
        output_file("--json", tmp_path)
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(ConfigError, match=rf"--out = '{path}': the folder cannot be made"):
            output_folder("--out", path)
    assert output_folder("--out", tmp_path) == tmp_path


@pytest.mark.parametrize(
    ("main", "flag"),
    [
        (benchmark.main, "--json"),
        (benchmark.main, "--report"),
        (benchmark_start.main, "--json"),
        (demo.main, "--record"),
        (matrix.main, "--markdown"),
        (selfcheck.main, "--json"),
        (selfcheck.main, "--report"),
    ],
)
def test_a_command_begins_with_its_output(main, flag, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as end:
        main([flag, str(tmp_path / "file/figures")])
    said = capsys.readouterr()
    assert (end.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"error: {flag} = '{tmp_path / 'file'}': the folder cannot be made")
