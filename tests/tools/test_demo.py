"""tools/demo.py: it keeps a teacher that somebody trained, and does not take one for another."""

from __future__ import annotations

import shutil

import demo
import pytest
from helpers.commands import ROOT


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "demo/teacher").mkdir(parents=True)
    return tmp_path / "demo/teacher"


def test_an_empty_folder_takes_either(folder):
    assert demo.other_teacher(folder, trained=False) == demo.other_teacher(folder, trained=True) == ""


def test_ours_is_used_again_and_not_taken_for_one_that_was_trained(folder):
    shutil.copyfile(demo.TEACHER, folder / "model_final.pth")
    assert demo.other_teacher(folder, trained=False) == ""
    problem = demo.other_teacher(folder, trained=True)
    assert problem.startswith(f"{folder / 'model_final.pth'} is the repository's teacher")
    assert problem.endswith(f"rm -r {folder.parent}")


def test_results_are_used_again_with_the_teacher_that_they_are_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = demo.OUTPUT / "teacher/model_final.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    result = {"AP": 70.4, "AP50": 93.0, "seconds": 477.0}
    assert [demo.reused(name) for name in demo.RUNS] == [None, None, None]
    assert [demo.keep(name, result) for name in demo.RUNS] == [result, result, result]
    assert [demo.reused(name) for name in demo.RUNS] == [result, result, result]
    weights.write_bytes(b"another")  # from which the student alone has not learnt
    assert [demo.reused(name) for name in demo.RUNS] == [None, result, None]


def test_a_trained_one_is_not_overwritten(folder):
    (folder / "model_0000499.pth").write_bytes(b"weights")
    assert demo.other_teacher(folder, trained=True) == ""
    assert "is not the repository's teacher; go on with --train-teacher" in demo.other_teacher(
        folder, trained=False
    )
