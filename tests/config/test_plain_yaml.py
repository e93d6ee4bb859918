"""A config that came with a teacher or a run is data: whatever could run code in it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers.commands import ROOT, run_tool

from mgd_det.config import load_config
from mgd_det.errors import ConfigError
from mgd_det.modeling.teacher import TeacherSpec


@pytest.fixture
def trace(tmp_path) -> Path:
    """The folder that a hostile config makes if its code runs."""
    return tmp_path / "ran"


@pytest.fixture
def hostile(teacher_run, tmp_path, trace) -> Path:
    """A teacher's folder with code in its config."""
    folder = tmp_path / "hostile"
    shutil.copytree(teacher_run, folder)
    with (folder / "config.yaml").open("a") as f:
        f.write(f"HOOK: !!python/object/apply:os.mkdir ['{trace}']\n")
    return folder


def test_a_teachers_config_runs_no_code(mgd_cfg, hostile, trace):
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = str(hostile / "config.yaml")
    with pytest.raises(ConfigError) as raised:
        TeacherSpec.from_config(mgd_cfg).config()
    for part in (
        "DISTILL.TEACHER.CONFIG_FILE",
        f"{hostile}/config.yaml",
        "os.mkdir",
        "DISTILL.UNSAFE_LOADING",
    ):
        assert part in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert not trace.exists()


def test_nor_does_what_it_is_based_on(mgd_cfg, hostile, trace, tmp_path):
    (tmp_path / "config.yaml").write_text("_BASE_: hostile/config.yaml\n")
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = str(tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match="is not plain yaml"):
        TeacherSpec.from_config(mgd_cfg).config()
    assert not trace.exists()


def test_unsafe_loading_allows_it(mgd_cfg, hostile, trace):
    """And `HOOK`, which then is a value, is still no key."""
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = str(hostile / "config.yaml")
    mgd_cfg.DISTILL.UNSAFE_LOADING = True
    with pytest.raises(ConfigError, match="HOOK"):
        TeacherSpec.from_config(mgd_cfg).config()
    assert trace.is_dir()


def test_plain_configs_with_tuples_are_read(teacher_run, tmp_path):
    """Detectron2 writes tuples as lists, and people write them as text."""
    (tmp_path / "config.yaml").write_text(
        f"_BASE_: {teacher_run}/config.yaml\nINPUT: {{MIN_SIZE_TRAIN: '(600, 640)'}}\n"
    )
    cfg = load_config(str(tmp_path / "config.yaml"), trusted=False)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (600, 640)
    assert cfg.MODEL.RESNETS.WIDTH_PER_GROUP == 16


@pytest.mark.parametrize(
    "tool", [["tools/visualize.py", "--out", "page"], ["tools/export.py", "--out", "files"]]
)
def test_tools_run_no_code_of_a_run(tool, hostile, trace, tmp_path):
    script, *arguments = tool
    result = run_tool(ROOT / script, "--run", hostile, *arguments, cwd=tmp_path, check=False)
    assert result.returncode == 2
    last = result.stderr.splitlines()[-1]
    assert "--run" in last and f"{hostile}/config.yaml" in last and "is not plain yaml" in last
    assert "Traceback" not in result.stderr
    assert not trace.exists()


def test_nor_does_the_example_of_predictions(hostile, trace, tmp_path):
    (hostile / "config.yaml").rename(hostile / "student_config.yaml")
    command = [ROOT / "docs/examples/predict.py", "--run", hostile, "--image", tmp_path / "none.png"]
    assert run_tool(*command, check=False).returncode != 0
    assert not trace.exists()


def test_a_file_does_not_decide_whether_it_is_trusted(tmp_path):
    (tmp_path / "config.yaml").write_text("DISTILL: {UNSAFE_LOADING: True}\n")
    assert load_config(str(tmp_path / "config.yaml")).DISTILL.UNSAFE_LOADING
    assert not load_config(str(tmp_path / "config.yaml"), trusted=False).DISTILL.UNSAFE_LOADING
