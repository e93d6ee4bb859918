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


def test_a_trained_one_is_not_overwritten(folder):
    (folder / "model_0000499.pth").write_bytes(b"weights")
    assert demo.other_teacher(folder, trained=True) == ""
    assert "is not the repository's teacher; go on with --train-teacher" in demo.other_teacher(
        folder, trained=False
    )
