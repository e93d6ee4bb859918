"""The gate of `tools/compare.py`: by hand, from written records, and from real evaluations."""

from __future__ import annotations

import json
from pathlib import Path

import compare
import pytest
import yaml
from comparing.evaluations import EvaluationProcess, plan_evaluations
from comparing.experiment import plan, read_experiment
from comparing.gate import Gate, judge
from comparing.records import append_record, read_file
from comparing.runner import Runner
from helpers.commands import ROOT
from helpers.detectors import small_config
from helpers.experiments import error_of, experiment, record, run_compare

ALONE = ["DISTILL.ENABLED", False]
ARMS = {"alone": ALONE, "longer": {"set": ALONE, "iterations": 600}, "mgd": []}
GATE = {"data": "demo_val", "twice": "longer", "max_gain": 0.5, "min_lead": 5}
LIMITS = Gate("val", "longer", 0.5, 5.0)


def test_both_halves_by_hand():
    """The baseline has (40 + 44 + 45) / 3; seeds 1 and 2 have both lengths and gain 0.2 and 0.4."""
    found = judge(LIMITS, 48.0, {1: 40.0, 2: 44.0, 3: 45.0}, {1: 40.2, 2: 44.4, 4: 0.0})
    assert (found.baseline_ap, found.baseline_seeds, found.teacher_ap, found.lead) == (43.0, 3, 48.0, 5.0)
    assert found.n == 2
    assert found.baseline_ap_twice == pytest.approx(42.3)
    assert found.gain == pytest.approx(0.3)
    assert found.half_width == pytest.approx(0.1 * 12.7062, abs=1e-3)  # Student's t of one degree of freedom
    assert found.converged is found.teacher_leads is found.passed is True


@pytest.mark.parametrize(
    ("teacher", "once", "twice", "halves"),
    [
        (47.0, {1: 40.0, 2: 40.0}, {1: 40.5, 2: 40.5}, (False, True)),  # 0.5 is not less than 0.5
        (44.9, {1: 40.0, 2: 40.0}, {1: 39.0, 2: 40.0}, (True, False)),
        (47.0, {1: 40.0, 2: 40.0}, {1: 40.0}, (None, True)),  # one seed cannot tell
        (None, {1: 40.0, 2: 40.0}, {1: 40.0, 2: 40.0}, (True, None)),
        (47.0, {1: 40.0}, {2: 40.0}, (None, True)),  # the teacher's lead needs no second length
        (47.0, {}, {1: 40.0}, (None, None)),
    ],
)
def test_a_gate_that_is_not_passed(teacher, once, twice, halves):
    found = judge(LIMITS, teacher, once, twice)
    assert (found.converged, found.teacher_leads) == halves
    assert not found.passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "gate: data = None: missing. Give a text"),
        ({"min_lead": "five"}, "gate: min_lead = 'five': not a number. Give a number."),
        ({"max_gain": True}, "gate: max_gain = True: not a number"),
        ({"report": "x"}, "gate: report = 'x': unknown key. The keys are data, twice, max_gain, min_lead."),
        ({"twice": "mgd"}, "gate: twice = 'mgd': not an arm of 600 iterations, twice those of the baseline"),
        ({"twice": "nobody"}, "gate: twice = 'nobody': not an arm of 600 iterations"),
        ({"data": "demo_gone"}, "gate: data = 'demo_gone': no data set of that name is registered"),
    ],
)
def test_bad_gates(changes, message, tmp_path, capsys, monkeypatch):
    gate = {key: value for key, value in {**GATE, **changes}.items() if value is not None}
    assert message in error_of(capsys, monkeypatch, experiment(tmp_path, arms=ARMS, gate=gate))


def test_the_experiment_in_the_help_can_be_read(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    example = compare.EXAMPLES.split("at the repository:\n")[1].split('"{seed}" is')[0]
    path = tmp_path / "experiment.yaml"
    path.write_text(example)
    read = read_experiment(path)
    assert read.gate == Gate("demo_val", "student alone, twice as long", 0.5, 5)
    assert [arm.name for arm in read.arms if arm.published] == ["mgd, with figures of others beside its own"]


def test_a_gate_needs_a_teacher(tmp_path, capsys, monkeypatch):
    path = experiment(tmp_path, arms=ARMS, gate=GATE, config="configs/demo/student.yaml")
    assert "DISTILL.TEACHER.CONFIG_FILE = '': the gate compares" in error_of(capsys, monkeypatch, path)


def write_records(path: Path, aps: dict[str, dict[int, float]], on_val: dict[str, dict[int, float]]) -> None:
    """Records as of the runs that the experiment plans, whose arms have these APs by seed."""
    read = read_experiment(path)
    runs = plan(read, 0)
    evaluations = plan_evaluations(read, read.gate, runs, 0)
    for planned, figures in ((runs, aps), (evaluations, on_val)):
        for run in planned:
            if run.seed in figures.get(run.arm.name, {}):
                ap = figures[run.arm.name][run.seed]
                append_record(run.records, {**record(run.arm.name, run.seed, ap), "settings": run.settings})


def report(tmp_path: Path, capsys, monkeypatch, on_val, **gate) -> tuple[str, dict]:
    monkeypatch.chdir(ROOT)
    test = ["DATASETS.TEST", '("demo_test",)']
    path = experiment(tmp_path, arms=ARMS, gate={**GATE, **gate}, set=test)
    on_test = {"alone": {11: 30.0, 12: 32.0}, "mgd": {11: 31.0, 12: 33.0}, "longer": {11: 50.0, 12: 50.0}}
    write_records(path, on_test, on_val)
    assert run_compare(capsys, monkeypatch, path, "--report-only")[0] == 0
    results = tmp_path / "results"
    return (results / "report.md").read_text(), json.loads((results / "report.json").read_text())


def test_a_passed_gate_is_read_on_its_own_set(tmp_path, capsys, monkeypatch):
    """The arms are measured on test, where twice the length would gain 19 AP; on val it gains 0.3."""
    on_val = {"teacher": {0: 47.0}, "alone": {11: 40.0, 12: 44.0}, "longer": {11: 40.2, 12: 44.4}}
    text, figures = report(tmp_path, capsys, monkeypatch, on_val)
    assert "has not passed" not in text
    for line in (
        "| gate, on demo_val | AP | required | |",
        "| baseline, seeds: 2 | 42.00 | - | - |",
        "| twice the length, seeds that both have: 2 | 42.30 | - | - |",
        "| teacher | 47.00 | - | - |",
        "gained by twice the length | +0.30 (95%: -0.97 to +1.57) | below +0.50 | passes |",
        "| teacher above the baseline | +5.00 | at least +5.00 | passes |",
    ):
        assert line in text
    assert [figures[key] for key in ("teacher_ap", "baseline_ap", "baseline_ap_twice")] == [
        47.0,
        42.0,
        pytest.approx(42.3),
    ]
    assert figures["data"] == "demo_train to train, demo_test to measure"
    assert figures["gate"]["passed"] is True
    assert figures["arms"][0]["ap"] == 31.0


def test_a_failed_gate_is_said_first(tmp_path, capsys, monkeypatch):
    on_val = {"teacher": {0: 41.0}, "alone": {11: 40.0, 12: 40.0}, "longer": {11: 42.0, 12: 42.0}}
    text, figures = report(tmp_path, capsys, monkeypatch, on_val)
    first = text.splitlines()[2]
    assert "has not passed its gate" in first
    assert "on demo_val, the baseline gains +2.00 AP from twice the length, not less than 0.5; " in first
    assert "the teacher is +1.00 AP above the baseline, not at least 5" in first
    assert text.count("| **fails** |") == 2
    assert figures["gate"]["passed"] is False


def test_a_gate_that_is_not_measured_yet(tmp_path, capsys, monkeypatch):
    text, figures = report(tmp_path, capsys, monkeypatch, {"alone": {11: 40.0}, "longer": {11: 40.0}})
    assert "the baseline has 1 of at least 2 seeds at both lengths; how far the teacher" in text
    assert (figures["teacher_ap"], figures["baseline_ap"]) == (None, 40.0)


def test_the_teachers_lead_is_known_before_twice_the_length(tmp_path, capsys, monkeypatch):
    on_val = {"teacher": {0: 47.0}, "alone": {11: 40.0, 12: 42.0}}
    text, figures = report(tmp_path, capsys, monkeypatch, on_val)
    assert "the baseline has 0 of at least 2 seeds at both lengths." in text.splitlines()[2]
    assert "| baseline, seeds: 2 | 41.00 | - | - |" in text
    assert "| teacher above the baseline | +6.00 | at least +5.00 | passes |" in text
    assert (figures["gate"]["lead"], figures["gate"]["passed"]) == (6.0, False)


def test_on_the_set_that_arms_are_measured_on_the_teacher_alone_is_evaluated(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    read = read_experiment(experiment(tmp_path, arms=ARMS, gate=GATE))
    assert [run.arm.name for run in plan_evaluations(read, read.gate, plan(read, 0), 0)] == ["teacher"]


def test_teacher_and_students_are_evaluated_alike(demo_data, teacher_run, tmp_path, monkeypatch):
    """The runs of the arms are taken to have left the very network that is the teacher."""
    monkeypatch.chdir(ROOT)
    cfg = small_config(demo_data, tmp_path / "unused")
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher_run / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher_run / "model_final.pth")
    # With the usual threshold an untrained network detects nothing, and has no AP.
    cfg.DISTILL.TEACHER.OPTS = low = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0]
    train, val = cfg.DATASETS.TRAIN[0], cfg.DATASETS.TEST[0]
    config, finished = tmp_path / "run.yaml", tmp_path / "finished"
    config.write_text(cfg.dump())
    finished.mkdir()
    (finished / "model_final.pth").symlink_to(teacher_run / "model_final.pth")
    student = yaml.safe_load((teacher_run / "config.yaml").read_text())
    student["MODEL"]["RETINANET"][low[0].split(".")[-1]] = low[1]
    (finished / "config.yaml").write_text(yaml.safe_dump(student))

    gate = {**GATE, "data": train}
    path = experiment(tmp_path, config=str(config), arms=ARMS, gate=gate, seeds=[11])
    read = read_experiment(path)
    runs = [run._replace(output=finished) for run in plan(read, 0) if run.arm.name != "longer"]
    planned = plan_evaluations(read, read.gate, runs, 0)
    assert [run.arm.name for run in planned] == ["teacher", "alone"]
    assert (read.tested, planned[0].settings["DATASETS.TEST"]) == (val, [train])
    assert Runner(planned, {}, jobs=2, gpus=0, process=EvaluationProcess).run() == 0
    records = read_file(tmp_path / "results/gate.jsonl")
    assert set(records) == {("teacher", 0), ("alone", 11)}
    found = [
        (tmp_path / "output/gate" / run.name / "teacher/inference/coco_instances_results.json").read_text()
        for run in planned
    ]
    assert found[0] == found[1]
    assert {image["image_id"] for image in json.loads(found[0])} == set(range(1, 17))  # the set's own
    assert str(teacher_run / "model_final.pth") in records["teacher", 0]["files"]
