"""Keys of other projects: beside ours, in the teacher's config, and in the student's afterwards."""

from __future__ import annotations

import logging

import pytest
import yacs.config
from detectron2.config import get_cfg
from helpers.projects import FUNCTION, add_project_config

from mgd_det import RematchHook, Trainer, add_mgd_config
from mgd_det.config import check_run_values, load_config, student_config
from mgd_det.config.functions import config_with, keys_beyond
from mgd_det.engine.optimizer import build_optimizer
from mgd_det.errors import ConfigError
from mgd_det.modeling.teacher import TeacherSpec


def both(*functions):
    cfg = get_cfg()
    for function in functions:
        function(cfg)
    return cfg


@pytest.mark.parametrize(
    "order",
    [
        (add_project_config, add_mgd_config),
        (add_mgd_config, add_project_config),
        (add_mgd_config, add_project_config, add_mgd_config),
    ],
)
def test_keys_of_others_keep_their_values_in_any_order(order):
    cfg = both(*order)
    assert cfg.SOLVER.OPTIMIZER == "ADAMW"
    assert cfg.MODEL.PROJECT.EXTRA == 3
    assert cfg.SOLVER.AMP.DTYPE == "float16"


def test_a_second_call_leaves_what_has_been_set():
    cfg = both(add_mgd_config)
    cfg.DISTILL.METHODS, cfg.DISTILL.MGD.TAPS = ["mgd", "lsh"], ["res5"]
    add_mgd_config(cfg)
    assert (cfg.DISTILL.METHODS, cfg.DISTILL.MGD.TAPS) == (["mgd", "lsh"], ["res5"])


def test_a_frozen_config_is_not_changed():
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(AttributeError):
        add_mgd_config(cfg)


@pytest.mark.parametrize("value", ["SGD", "sgd", "AdamW", "ADAMW"])
def test_an_optimiser_is_named_in_any_case(value, student_cfg):
    student_cfg.SOLVER.OPTIMIZER = value
    check_run_values(student_cfg)
    kind = type(build_optimizer(student_cfg, Trainer.build_model(student_cfg)))
    assert kind.__name__.lower() == value.lower()


def test_an_optimiser_of_theirs_is_refused_by_our_trainer_alone(mgd_cfg):
    mgd_cfg.SOLVER.OPTIMIZER, mgd_cfg.SOLVER.STEPS = "LION", (3, 2)
    RematchHook(mgd_cfg)
    with pytest.raises(ConfigError, match=r"OPTIMIZER = 'LION': unknown\. Choose one of 'SGD', 'AdamW'"):
        Trainer(mgd_cfg)
    with pytest.raises(ConfigError, match="OPTIMIZER = 'LION': unknown"):
        build_optimizer(mgd_cfg, Trainer.build_model(mgd_cfg))


def test_a_section_of_theirs_in_place_of_ours_says_what_to_do():
    cfg = both(add_mgd_config)
    del cfg.SOLVER.AMP["DTYPE"]
    cfg.MODEL.DEVICE = "cpu"
    with pytest.raises(ConfigError, match=r"SOLVER\.AMP\.DTYPE.*Call add_mgd_config\(cfg\) after"):
        check_run_values(cfg)


def test_the_students_config_keeps_keys_that_are_not_ours():
    cfg = both(add_project_config, add_mgd_config)
    cfg.MODEL.PROJECT.NAME, cfg.SOLVER.OPTIMIZER = "mine", "LION"
    student = student_config(cfg)
    theirs = both(add_project_config)
    theirs.MODEL.PROJECT.NAME, theirs.SOLVER.OPTIMIZER = "mine", "LION"
    assert student.dump() == theirs.dump()
    for name in ("SGD", "adamw"):  # which could be ours
        cfg.SOLVER.OPTIMIZER, cfg.DISTILL.CONFIG_FUNCTIONS = name, []
        assert "OPTIMIZER" not in student_config(cfg).SOLVER
        cfg.DISTILL.CONFIG_FUNCTIONS = [FUNCTION]  # and is theirs
        assert name == student_config(cfg).SOLVER.OPTIMIZER


def test_files_with_keys_of_others(tmp_path):
    path = tmp_path / "theirs.yaml"
    path.write_text("MODEL: {PROJECT: {NAME: mine}}")
    cfg = load_config(str(path), ["MODEL.PROJECT.EXTRA", "4"], functions=[FUNCTION])
    assert (cfg.MODEL.PROJECT.NAME, cfg.MODEL.PROJECT.EXTRA) == ("mine", 4)
    assert cfg.DISTILL.CONFIG_FUNCTIONS == [FUNCTION]
    with pytest.raises(ConfigError, match="Keys of another project are there with --config-function"):
        load_config(str(path))
    with pytest.raises(ConfigError, match="comes too late among the overrides"):
        load_config(str(path), ["DISTILL.CONFIG_FUNCTIONS", [FUNCTION, FUNCTION]], functions=[FUNCTION])


def test_a_file_does_not_decide_which_code_runs(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(load_config_of_project(tmp_path).dump())
    assert load_config(str(path), functions=[FUNCTION]).DISTILL.CONFIG_FUNCTIONS == [FUNCTION]
    path.write_text('DISTILL: {CONFIG_FUNCTIONS: ["never.imported:function"]}')
    with pytest.raises(
        ConfigError, match=r"is of a run with --config-function never\.imported:function\. Give"
    ):
        load_config(str(path))


def load_config_of_project(folder):
    (folder / "empty.yaml").write_text("{}")
    return load_config(str(folder / "empty.yaml"), functions=[FUNCTION])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("helpers.projects", "does not name a module and a function. Give it as"),
        ("helpers.nothing:f", r"cannot be imported \(ModuleNotFoundError.*PYTHONPATH"),
        ("helpers.projects:absent", r"cannot be imported \(AttributeError"),
        ("helpers.projects:FUNCTION", "is no function"),
        ("helpers.projects:add_nothing", "fails on Detectron2's default config .*a project that cannot"),
    ],
)
def test_functions_that_cannot_be_used(name, message):
    with pytest.raises(ConfigError, match=f"^--config-function = '{name}': {message}"):
        config_with([name])


def test_keys_beyond_another_config():
    cfg = both(add_project_config)
    beyond = keys_beyond(cfg, get_cfg())
    expected = {"MODEL": {"PROJECT": {"EXTRA": 3, "NAME": "default"}}, "SOLVER": {"OPTIMIZER": "ADAMW"}}
    assert beyond == expected
    assert keys_beyond(cfg, cfg) == {}


@pytest.fixture
def two_of_a_project(mgd_cfg, tmp_path):
    """A student with values of its own in a project's keys, and a teacher whose file sets one of them."""
    (tmp_path / "teacher.yaml").write_text("VERSION: 2\nMODEL: {PROJECT: {NAME: teacher}}")
    add_project_config(mgd_cfg)
    mgd_cfg.MODEL.PROJECT.EXTRA, mgd_cfg.MODEL.PROJECT.NAME = 5, "student"
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = str(tmp_path / "teacher.yaml")
    return mgd_cfg


def test_the_teacher_gets_the_projects_defaults_where_functions_are_named(two_of_a_project, caplog):
    two_of_a_project.DISTILL.CONFIG_FUNCTIONS = [FUNCTION]
    teacher = TeacherSpec.from_config(two_of_a_project).config()
    assert teacher.MODEL.PROJECT == {"EXTRA": 3, "NAME": "teacher"}
    assert "DISTILL" not in teacher
    assert "does not set" not in caplog.text


def test_without_functions_the_teacher_takes_what_its_file_lacks_and_says_so(two_of_a_project, caplog):
    with caplog.at_level(logging.WARNING, "detectron2"):
        teacher = TeacherSpec.from_config(two_of_a_project).config()
    assert teacher.MODEL.PROJECT == {"EXTRA": 5, "NAME": "teacher"}
    assert "does not set MODEL.PROJECT.EXTRA, which has the value of the student's config." in caplog.text


def test_nodes_of_yacs_own_class():
    cfg = get_cfg()
    cfg.MODEL.THEIRS = yacs.config.CfgNode({"A": 1, "B": yacs.config.CfgNode({"C": 2})})
    known = get_cfg()
    known.MODEL.THEIRS = yacs.config.CfgNode({"A": 0})
    assert keys_beyond(cfg, known) == {"MODEL": {"THEIRS": {"B": {"C": 2}}}}
    add_mgd_config(cfg)
    assert student_config(cfg).MODEL.THEIRS.B.C == 2
