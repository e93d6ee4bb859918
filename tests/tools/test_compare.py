"""`tools/compare.py`: its statistics by hand, its report from written records, and a real experiment."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from comparing import picture, report, summary
from comparing.curves import Point, curves
from comparing.experiment import Arm, Run, changed, file_name, files, plan, read_experiment, scaled
from comparing.published import Published
from comparing.records import append_record, check_files, check_unfinished, read_file, read_records
from comparing.runner import Runner, RunProcess, shares, time_left
from helpers.commands import ROOT, started
from helpers.detectors import small_config
from helpers.experiments import error_of, experiment, record, run_compare
from matplotlib.figure import Figure
from PIL import Image

from mgd_det.config import load_config
from mgd_det.engine.trainer import Trainer
from mgd_det.errors import ConfigError
from mgd_det.rng import isolated_rng

COMPARE = ROOT / "tools/compare.py"


def test_differences_are_paired_over_the_seeds_that_both_have():
    assert summary.paired({1: 5.0, 2: 7.0, 3: 9.0}, {3: 6.0, 1: 4.0, 4: 1.0}) == {1: 1.0, 3: 3.0}


@pytest.mark.parametrize(
    ("values", "mean", "half_width"),
    [
        ([1.0, 2.0, 3.0], 2.0, 4.3027 / math.sqrt(3)),  # t of 2 degrees of freedom; 2 +- 2.484
        ([1.0, 3.0], 2.0, 12.7062),  # of 1; the standard error is 1
        ([-1.0, -1.0, -1.0], -1.0, 0.0),
    ],
)
def test_interval_is_students(values, mean, half_width):
    assert summary.mean(values) == mean
    assert summary.half_width(values) == pytest.approx(half_width, abs=1e-3)


def test_too_few_values():
    assert summary.half_width([5.0]) is summary.deviation([5.0]) is summary.mean([]) is None


def test_median_is_of_the_runs_with_a_value():
    runs = [{"x": 1}, {"x": None}, {"x": 2}, {"x": 6}]
    assert summary.median(runs, "x") == 2
    assert summary.median(runs[1:2], "x") is None


def test_memory_of_a_gpu_is_not_mixed_with_that_of_processes():
    """The second run was killed in its last evaluation, and its last start trained nothing on the GPU."""
    records = [record("alone", 1, 10.0, peak_gpu_memory_mib=200), record("alone", 2, 10.0)]
    assert summary.summarise(records, {"alone": 300}, "alone", 2)[0].memory_mib == 200
    assert summary.summarise(records[1:], {"alone": 300}, "alone", 2)[0].memory_mib == 1000


RECORDS = [
    *(record("alone", seed, 10.0 * seed) for seed in (1, 2, 3)),
    *(record("mgd | new", seed, 11.0 * seed, 0.3, peak_memory_mib=1500) for seed in (1, 2, 3)),
    record("long", 2, 19.0),
]
ITERATIONS = {"alone": 300, "mgd | new": 300, "long": 600, "not yet": 300}


def write_report(folder: Path, records=RECORDS, pairs=(), published=None) -> str:
    facts = {"command": "python tools/compare.py x.yaml", "data": "a to train, b to measure"}
    seeds = [1, 2, 3]
    arms = {"iterations": ITERATIONS, "baseline": "alone", "seeds": seeds}
    return report.write_report(folder, records, facts=facts, pairs=pairs, published=published, **arms)


def test_table(tmp_path):
    assert write_report(tmp_path).splitlines()[2:] == [
        "| alone | 3 | 20.00 | 10.00 | 40.00 | - | - | 0.200 | 1.00 | 1000 | 1.00 |",
        "| mgd \\| new | 3 | 22.00 | 11.00 | 44.00 | +2.00 | -0.48 to +4.48 | 0.300 | 1.50 | 1500 | 1.50 |",
        "| long (600 iterations) | 1 of 3 | 19.00 | - | 38.00 | -1.00 | - | 0.200 | 1.00 | 1000 | 1.00 |",
        "| not yet | 0 of 3 | - | - | - | - | - | - | - | - | - |",
    ]


def test_report_files_say_the_same(tmp_path):
    table = write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert table in text
    for line in (
        "| command | python tools/compare.py x.yaml |",
        "| machine | toaster |",
        "| versions | torch 2, detectron2 0.6 |",
        "| date | 2020-02-01 to 2020-02-03 |",
    ):
        assert line in text
    assert "not corrected for the number of arms" in text
    assert "different conditions" not in text
    arms = json.loads((tmp_path / "report.json").read_text())["arms"]
    assert [arm["arm"] for arm in arms] == list(ITERATIONS)
    assert arms[1]["half_width"] == pytest.approx(2.484, abs=1e-3)
    assert arms[3]["ap"] is None
    assert arms[1]["differences"] == {"1": 1.0, "2": 2.0, "3": 3.0}


def test_pairs_are_compared_over_the_seeds_that_both_have(tmp_path):
    """mgd | new: 11, 22, 33 with seeds 1, 2, 3; long: 19 with seed 2 alone."""
    table = write_report(tmp_path, pairs=[("mgd | new", "long"), ("mgd | new", "alone"), ("long", "not yet")])
    assert table.splitlines()[-5:] == [
        "| arm | against | n | AP - AP | 95% interval |",
        "|---|---|---:|---:|---:|",
        "| mgd \\| new | long (600 iterations) | 1 | +3.00 | - |",
        "| mgd \\| new | alone | 3 | +2.00 | -0.48 to +4.48 |",
        "| long (600 iterations) | not yet | 0 | - | - |",
    ]
    assert table in (tmp_path / "report.md").read_text()
    pairs = json.loads((tmp_path / "report.json").read_text())["pairs"]
    assert pairs[1]["differences"] == {"1": 1.0, "2": 2.0, "3": 3.0}


def test_published_figures_stand_beside_those_of_the_arms(tmp_path):
    figures = [Published(31.38, "A, 2020", "1x | COCO"), Published(9.0, "B", "nothing")]
    table = write_report(tmp_path, published={"mgd | new": figures, "not yet": figures[1:]})
    assert table.splitlines()[-5:] == [
        "| arm | AP here | AP of others, by their own account | source | what differs there |",
        "|---|---:|---:|---|---|",
        "| mgd \\| new | 22.00 | 31.38 | A, 2020 | 1x \\| COCO |",
        "| mgd \\| new | 22.00 | 9.00 | B | nothing |",
        "| not yet | - | 9.00 | B | nothing |",
    ]
    published = json.loads((tmp_path / "report.json").read_text())["published"]
    assert published["not yet"] == [{"AP": 9.0, "source": "B", "differs": "nothing"}]


def test_picture_grows_with_the_arms(tmp_path):
    write_report(tmp_path)
    several = Image.open(tmp_path / "report.png").size
    write_report(tmp_path, RECORDS[:1])
    assert Image.open(tmp_path / "report.png").size == several
    rows = summary.summarise(RECORDS, {"alone": 300}, "alone", 3)
    picture.draw(rows, "alone", {"alone": "alone"}, {}, tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size[1] < several[1]


def test_a_single_seed_is_not_drawn_as_a_mean():
    for records, means in ((RECORDS, 1), ([r for r in RECORDS if r["seed"] == 1], 0)):
        axis = Figure().add_subplot()
        rows = summary.summarise(records, ITERATIONS, "alone", 3)
        picture.draw_differences(axis, rows, "alone", {row.arm: row.arm for row in rows})
        assert len(axis.containers) == means


def test_curves_have_the_iterations_that_all_seeds_have():
    """The second seed's evaluation at 100 is missing; at 200 it detected nothing."""
    aps = [{"100": 1.0, "200": 4.0, "1000": 9.0}, {"200": None, "1000": 7.0}]
    records = [record("alone", seed, 9.0, AP_by_iteration=ap) for seed, ap in enumerate(aps, 1)]
    records.append(record("mgd", 1, 5.0, AP_by_iteration={"1000": 5.0}))
    root = math.sqrt(2.0)
    assert curves(records, ["alone", "mgd", "not yet"]) == {
        "alone": [Point(200, 2.0, pytest.approx(2 * root)), Point(1000, 8.0, pytest.approx(root))],
        "mgd": [Point(1000, 5.0, None)],
    }
    assert curves(records[2:], ["mgd"]) == {}
    early = record("mgd", 2, 6.0)  # of a version that kept the last AP alone
    assert curves([*records, early], ["mgd"]) == {}


def test_the_picture_shows_the_curves_if_there_are_any(tmp_path):
    write_report(tmp_path)
    plain = Image.open(tmp_path / "report.png").size
    assert "curves" not in json.loads((tmp_path / "report.json").read_text())
    by_iteration = {"AP_by_iteration": {"150": 5.0, "300": 10.0}}
    write_report(tmp_path, [{**found, **by_iteration} for found in RECORDS])
    size = Image.open(tmp_path / "report.png").size
    assert size == (plain[0], plain[1] + picture.CURVE_HEIGHT * 120)
    assert "AP over the iterations" in (tmp_path / "report.md").read_text()
    curve = [[150, 5.0, 0.0], [300, 10.0, 0.0]]
    found = json.loads((tmp_path / "report.json").read_text())["curves"]
    assert found == {"alone": curve, "mgd | new": curve, "long": [[150, 5.0, None], [300, 10.0, None]]}


def test_runs_of_several_machines_and_versions_are_said_to_be(tmp_path):
    write_report(
        tmp_path, [*RECORDS[1:], record("alone", 1, 10.0, machine="kettle", versions={"torch": "3"})]
    )
    text = (tmp_path / "report.md").read_text()
    assert "| machine | kettle; toaster |" in text
    assert "different conditions, see machine and versions above" in text


@pytest.mark.parametrize("overrides, said", [(["DISTILL.TEACHER.EVERY", "4"], True), ([], False)])
def test_seconds_of_a_step_without_the_teacher_are_said_to_be(overrides, said, tmp_path):
    write_report(tmp_path, [RECORDS[0], {**RECORDS[1], "overrides": overrides}])
    assert ("are those of a step without the teacher" in (tmp_path / "report.md").read_text()) is said


def test_file_names_are_safe_and_each_arms_own():
    names = ["mgd", "MGD", "m/g d", "m g/d", "../..", "größer", "größer!", "x" * 300]
    files = [file_name(name) for name in names]
    assert files[0] == "mgd"
    assert len({file.lower() for file in files}) == len(names)
    assert all(file.replace("-", "").isalnum() and file.isascii() and len(file) < 50 for file in files)


def test_steps_are_scaled_along():
    assert scaled((420, 540), 600, 300) == (210, 270)
    assert scaled((420, 540), 600, 4) == (3,)  # and not at the end, where it would be of no use
    assert scaled((1, 540), 600, 1) == ()
    assert scaled((), 600, 1200) == ()


@pytest.mark.parametrize(
    ("speeds", "left", "jobs", "seconds"),
    [
        ({}, [("a", 10)], 1, None),
        ({"a": [2.0]}, [("a", 10), ("a", 5)], 1, 30.0),
        ({"a": [2.0, 3.0, 9.0], "b": [1.0]}, [("a", 10), ("b", 10)], 1, 40.0),
        ({"a": [3.0], "b": [1.0]}, [("c", 10)], 1, 20.0),  # c is like the others
        ({"a": [1.0]}, [("a", 10), ("a", 10)], 2, 10.0),
        ({"a": [1.0]}, [("a", 10), ("a", 2)], 2, 10.0),  # the longest one alone
        ({"a": [1.0]}, [], 2, 0.0),
    ],
)
def test_time_left(speeds, left, jobs, seconds):
    assert time_left(speeds, left, jobs) == seconds


ARMS = {"alone": ["DISTILL.ENABLED", False]}
BAD = [
    ({"config": "configs/gone.yaml"}, r"config = 'configs/gone.yaml': there is no such file\. Give"),
    ({"config": None}, "config = None: missing. Give a text"),
    ({"colour": "red"}, "colour = 'red': unknown key. The keys are config, "),
    ({"iterations": "many"}, "iterations = 'many': not a whole number"),
    ({"iterations": True}, "iterations = True: not a whole number"),
    ({"iterations": 0}, "iterations = 0: less than 1"),
    ({"seeds": []}, "seeds = []: not a list of different whole numbers"),
    ({"seeds": [1, 2, 1]}, "seeds = [1, 2, 1]: not a list of different"),
    ({"seeds": [-1]}, "seeds = [-1]: not a list"),
    ({"seeds": ["1"]}, "seeds = ['1']: not a list"),
    ({"seeds": [[11, 12]]}, "seeds = [[11, 12]]: not a list"),
    ({"functions": [1]}, "--config-function = '1': does not name a module"),
    ({"arms": {}}, "arms = {}: there are none"),
    ({"baseline": "mgd, not"}, "baseline = 'mgd, not': not one of the arms. Choose among ['alone', 'mgd']"),
    ({"pairs": [["mgd", "gone"]]}, "pairs = ['mgd', 'gone']: not two of the arms. Give [ONE, OTHER], among"),
    ({"pairs": ["mgd"]}, "pairs = 'mgd': not two of the arms"),
    ({"pairs": [[["mgd"], "mgd"]]}, "pairs = [['mgd'], 'mgd']: not two of the arms"),
    ({"set": ["SOLVER.BASE_LR"]}, "set = ['SOLVER.BASE_LR']: an odd number of entries. Give pairs"),
    ({"set": ["NO.KEY", 1]}, "Non-existent key: NO.KEY"),
    ({"set": ["SOLVER.REFERENCE_WORLD_SIZE", 8]}, "SOLVER.REFERENCE_WORLD_SIZE = 8: changes the lengths"),
    ({"set": ["SEED", 1]}, "set = ['SEED', 1]: SEED is set for every run by seeds"),
    ({"set": ["DATASETS.TEST", []]}, "DATASETS.TEST = []: AP is compared on one data set"),
    ({"arms": {**ARMS, 0.5: []}}, "arms = 0.5: not a text. Put the name in quotes"),
    ({"arms": {**ARMS, "b": None}}, "arms: b = None: neither a list of overrides nor a table"),
    ({"arms": {**ARMS, "b": ["X"]}}, "arms: b = ['X']: an odd number"),
    ({"arms": {**ARMS, "b": ["DISTILL.NO", 1]}}, "Non-existent key: DISTILL.NO"),
    ({"arms": {**ARMS, "b": ["DISTILL.ENABLED", "perhaps"]}}, "arms: b = ['DISTILL.ENABLED', 'perhaps']"),
    (
        {"arms": {**ARMS, "b": {"sets": []}}},
        "arms: b: sets = []: unknown key. The keys are set, iterations, published",
    ),
    ({"arms": {**ARMS, "b": {"published": ["31.4"]}}}, "arms: b: published = '31.4': not a table"),
    ({"arms": {**ARMS, "b": {"published": [{"AP": 3}]}}}, "arms: b: published: source = None: missing"),
    ({"arms": {**ARMS, "b": {"iterations": -3}}}, "arms: b: iterations = -3: less than 1"),
    ({"arms": {**ARMS, "b": ["DATASETS.TEST", ["demo_test"]]}}, "AP on different images cannot be compared"),
    ({"output": "README.md"}, "output = 'README.md': is a file"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_experiments_end_in_one_line(changes, message, tmp_path, capsys, monkeypatch):
    error = error_of(capsys, monkeypatch, experiment(tmp_path, **changes))
    assert error.startswith("error: ")
    assert message.replace("\\", "") in error
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arms: {a: [], b: [], a: []}", "'a' is given twice"),
        ("seeds: [1", "cannot be read"),
        ("just text", "not a table"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
    ],
)
def test_bad_yaml(text, message, tmp_path, capsys, monkeypatch):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    error = error_of(capsys, monkeypatch, path)
    assert f"EXPERIMENT = '{path}'" in error
    assert message in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--only", "mgd", "nobody"],
            "--only = 'nobody': not in the experiment. Choose among ['alone', 'mgd']",
        ),
        (["--seeds", 13], "--seeds = 13: not in the experiment. Choose among [11, 12]"),
        (["--jobs", 0], "--jobs = 0: less than 1"),
        (["--num-gpus", -1], "--num-gpus = -1: less than 0"),
        (["--report-only"], "no run of this experiment is finished"),
    ],
)
def test_bad_arguments(arguments, message, tmp_path, capsys, monkeypatch):
    assert message in error_of(capsys, monkeypatch, experiment(tmp_path), *arguments)


def test_an_experiment_is_merged_into_its_base(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "shared").mkdir()
    path = experiment(tmp_path)
    path.rename(tmp_path / "shared/base.yaml")
    arms = "{long: {set: [], iterations: 9}, mgd: [SOLVER.BASE_LR, 1.0]}"
    path.write_text(f"_BASE_: shared/base.yaml\nseeds: [7]\narms: {arms}\n")
    base, own = read_experiment(tmp_path / "shared/base.yaml"), read_experiment(path)
    assert own._replace(arms=[]) == base._replace(seeds=[7], arms=[])
    assert [arm[:3] for arm in own.arms] == [
        ("alone", ["DISTILL.ENABLED", "False"], 300),
        ("mgd", ["SOLVER.BASE_LR", "1.0"], 300),
        ("long", [], 9),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: [a.yaml]", "_BASE_ = ['a.yaml']: not a text"),
        ("_BASE_: gone.yaml", "gone.yaml': cannot be read"),
        ("_BASE_: ./experiment.yaml", "_BASE_ = './experiment.yaml'"),
    ],
)
def test_bad_bases(text, message, tmp_path, capsys, monkeypatch):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    assert message in error_of(capsys, monkeypatch, path)


def test_a_missing_experiment(tmp_path, capsys, monkeypatch):
    assert "gone.yaml': cannot be read" in error_of(capsys, monkeypatch, tmp_path / "gone.yaml")


def test_runs_go_seed_by_seed_and_differ_in_what_they_should(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    arms = {**ARMS, "long": {"set": ["SOLVER.BASE_LR", 0.1], "iterations": 1200}}
    path = experiment(tmp_path, arms=arms, set=["DATASETS.TEST", '("demo_test",)'])
    runs = plan(read_experiment(path), 0)
    assert [(run.seed, run.arm.name) for run in runs] == [
        *((11, "alone"), (11, "long")),
        *((12, "alone"), (12, "long")),
    ]
    common = {"DATASETS.TEST": ["demo_test"], "DISTILL.EXACT_RESUME": True, "SOLVER.STEPS": [210, 270]}
    assert common.items() <= runs[0].settings.items()
    assert runs[0].command[-4:] == ["DATASETS.TEST", '("demo_test",)', "DISTILL.ENABLED", "False"]
    a, b, c = (runs[i].settings for i in (0, 1, 2))
    changed = {key for key in a.keys() | b.keys() if a.get(key) != b.get(key)}
    schedule = {"SOLVER.MAX_ITER", "SOLVER.STEPS"}
    assert changed == {"DISTILL.ENABLED", "SOLVER.BASE_LR", *schedule}
    assert {key for key in a.keys() | c.keys() if a.get(key) != c.get(key)} == {"SEED"}


def test_a_run_that_wrote_its_config_has_the_settings_it_began_with(tmp_path):
    """YAML gives the tuple of tuples among Detectron2's defaults back with lists in it."""
    cfg = load_config(str(ROOT / "configs/demo/student_mgd.yaml"))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert changed(load_config(str(tmp_path / "config.yaml"))) == changed(cfg)


def test_a_run_that_read_other_files_is_not_counted(tmp_path):
    weights, teacher, unlabelled = (tmp_path / name for name in ("teacher.pth", "teacher.yaml", "rest.json"))
    weights.write_bytes(b"abc")
    cfg = load_config(str(ROOT / "configs/demo/student_mgd.yaml"), ["DISTILL.TEACHER.WEIGHTS", str(weights)])
    cfg.DATASETS.REGISTER = [["rest", str(unlabelled), "images"]]
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc", in FIPS 180-2
    assert files(cfg) == {str(weights): digest}
    run = small_run(tmp_path, 1, "")._replace(files=files(cfg))
    finished = {"files": {str(weights): digest, "elsewhere.json": "0"}}
    check_files(run, finished)
    with pytest.raises(ConfigError, match=rf"made with another {weights}. Copy the experiment"):
        check_files(run._replace(files={str(weights): "0"}), finished)
    teacher.write_bytes(b"abc")
    unlabelled.write_bytes(b"abc")
    cfg.DISTILL.TEACHER.CONFIG_FILE, cfg.DATASETS.UNLABELED = str(teacher), ("rest",)
    assert files(cfg) == dict.fromkeys([str(unlabelled), str(weights), str(teacher)], digest)
    cfg.DATASETS.UNLABELED = ()
    cfg.DISTILL.ENABLED = False
    assert files(cfg) == {}


def test_arms_start_from_the_same_weights(mgd_cfg):
    states = []
    for enabled in (False, True):
        mgd_cfg.DISTILL.ENABLED = enabled
        with isolated_rng():
            torch.manual_seed(11)
            states.append(Trainer.build_model(mgd_cfg).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def small_run(tmp_path: Path, seed: int, script: str) -> Run:
    """A run of three iterations whose process is a Python script, in its output folder."""
    name = f"small_seed{seed}"
    output, arm = tmp_path / name, Arm("small", [], 3)
    command = ["-c", f"import os; os.chdir({str(output)!r}); {script}"]
    return Run(arm, seed, command, {"SEED": seed}, {}, name, output, tmp_path / "results/runs.jsonl")


def metrics_script(*lines: str) -> str:
    return f"open('metrics.json', 'w').write({''.join(line + chr(10) for line in lines)!r})"


def test_failed_runs_are_told_and_the_others_go_on(tmp_path, capsys):
    no_ap = '{"iteration": 3, "bbox/AP": NaN, "bbox/AP50": NaN, "bbox/AP75": NaN}'
    detections = "os.mkdir('inference'); open('inference/coco_instances_results.json', 'w').write({!r})"
    early = '{"iteration": 1, "bbox/AP": 4.0, "bbox/AP50": 5.0, "bbox/AP75": 3.0, "time": 0.5}'
    middle = '{"iteration": 2, "time": 0.7}'
    last = '{"iteration": 3, "bbox/AP": 8.0, "bbox/AP50": 9.0, "bbox/AP75": 7.0}'
    log = "print('Starting training from iteration 1'); print(' eta: 0 iter: 2  max_mem: 123M')"
    runs = [
        small_run(tmp_path, 1, "print('it was the butler'); raise SystemExit(3)"),
        small_run(tmp_path, 2, f"{detections.format('[{}]')}; {metrics_script(no_ap)}"),  # nothing to detect
        small_run(tmp_path, 3, metrics_script(early)),  # exit code 0, and yet no evaluation at its end
        small_run(tmp_path, 4, f"{log}; {metrics_script(early, middle, last)}"),
        small_run(tmp_path, 5, f"{detections.format('[]')}; {metrics_script(early, no_ap)}"),
    ]
    records: dict = {}
    assert Runner(runs, records, jobs=2, gpus=0).run() == 1
    output = capsys.readouterr().out
    assert "small, seed 1: failed: exit code 3; the end of " in output
    assert "it was the butler" in output
    assert output.count("failed: no AP: there was nothing to detect") == 1
    assert output.count("failed: it was not evaluated at its end") == 1
    assert "small, seed 4: AP 8.00 in 0:00:0" in output
    assert "2 of 5 runs done, 3 failed" in output
    assert set(records) == {"small_seed4", "small_seed5"}
    nothing_found = {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, "AP_by_iteration": {"2": 4.0, "3": 0.0}}
    assert nothing_found.items() <= records["small_seed5"].items()
    lines = [json.loads(line) for line in (tmp_path / "results/runs.jsonl").read_text().splitlines()]
    by_name = {f"{line['arm']}_seed{line['seed']}": line for line in lines}
    assert by_name == records
    written = by_name["small_seed4"]
    expected = {
        **{"arm": "small", "seed": 4, "iterations": 3, "resumed_from": 1},
        **{"AP": 8.0, "AP50": 9.0, "AP75": 7.0, "AP_by_iteration": {"2": 4.0, "3": 8.0}},
        **{"seconds_per_iteration": 0.6, "peak_gpu_memory_mib": 123},
    }
    assert expected.items() <= written.items()
    assert written["peak_memory_mib"] > 1
    assert {path.name for path in (tmp_path / "results").iterdir()} <= {"runs.jsonl", "runs.jsonl.lock"}


def finished_record(seed: int) -> dict:
    return {"arm": "small", "seed": seed, "settings": {"SEED": seed}}


def test_records_are_lines_of_one_file(tmp_path):
    runs = [small_run(tmp_path, seed, "") for seed in (1, 2, 3)]
    path = runs[0].records
    assert read_records(runs) == {}
    for seed in (2, 1):
        append_record(path, finished_record(seed))
    assert [json.loads(line)["seed"] for line in path.read_text().splitlines()] == [2, 1]
    assert read_records(runs) == {f"small_seed{seed}": finished_record(seed) for seed in (1, 2)}


def test_a_half_written_line_costs_no_other_record(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_record(path, finished_record(1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    assert list(read_file(path)) == [("small", 1)]
    append_record(path, finished_record(2))
    assert list(read_file(path)) == [("small", 1), ("small", 2)]
    assert path.read_bytes().startswith(whole)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # as some editors leave it
    append_record(path, finished_record(3))
    assert list(read_file(path)) == [("small", 1), ("small", 2), ("small", 3)]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    append_record(path, finished_record(1))
    for line in ('{"arm": "small", "se\n', '["small"]\n', '{"arm": "small"}\n'):
        path.write_text(line + path.read_text().splitlines()[-1] + "\n")
        with pytest.raises(ConfigError, match=r"line 1 is not the record of a run\. Delete that line"):
            read_file(path)


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    path = tmp_path / "runs.jsonl"
    append = (
        "import sys; from pathlib import Path; from comparing.records import append_record\n"
        "for seed in range(int(sys.argv[2]), int(sys.argv[2]) + 50):\n"
        "    record = {'arm': 'small', 'seed': seed, 'settings': {'long': 'x' * 20000}}\n"
        "    append_record(Path(sys.argv[1]), record)\n"
    )
    paths = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tools'}"}
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started(tmp_path / f"log{first}", "-c", append, path, first, env=paths))
            for first in (0, 50)
        ]
        for process in processes:
            process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert set(read_file(path)) == {("small", seed) for seed in range(100)}


@pytest.mark.parametrize(
    ("visible", "jobs", "each", "expected"),
    [
        (["0", "1", "2", "3"], 2, 2, ["0,1", "2,3"]),
        (["4", "5", "6"], 2, 1, ["4", "5"]),
        (["0", "1"], 3, 1, ["0", "1", "0"]),  # more runs than GPUs
        (["0", "1"], 2, 0, ["", ""]),
        ([], 2, 0, ["", ""]),
    ],
)
def test_every_run_has_gpus_of_its_own_as_far_as_they_go(visible, jobs, each, expected):
    assert shares(visible, jobs, each) == expected


def test_a_run_is_given_its_gpus_alone(tmp_path):
    show = "import os; print('GPUs', os.environ.get('CUDA_VISIBLE_DEVICES'))"
    process = RunProcess(small_run(tmp_path, 1, show), "4,5", {"CUDA_VISIBLE_DEVICES": "1"})
    while not process.ended():
        time.sleep(0.01)
    assert process.output() == "GPUs 4,5\n"


def test_an_override_can_be_each_runs_seed(tmp_path):
    seed = ["DISTILL.EXPERIMENT.ASSIGNMENT_SEED", "{seed}"]
    arms = {"alone": ["DISTILL.ENABLED", False], "mgd": seed}
    runs = plan(read_experiment(experiment(tmp_path, seeds=[11, 12], arms=arms)), 0)
    found = [run.settings.get("DISTILL.EXPERIMENT.ASSIGNMENT_SEED") for run in runs]
    assert found == [None, 11, None, 12]
    shared = plan(read_experiment(experiment(tmp_path, seeds=[11, 12], arms=arms, set=seed)), 0)
    assert [run.settings["DISTILL.EXPERIMENT.ASSIGNMENT_SEED"] for run in shared] == [11, 11, 12, 12]


def test_an_unfinished_run_that_trusts_its_files_goes_on(tmp_path):
    path = experiment(tmp_path, set=["DISTILL.UNSAFE_LOADING", True], seeds=[11])
    run = plan(read_experiment(path), 0)[0]
    run.output.mkdir(parents=True)
    opts = run.command[run.command.index("OUTPUT_DIR") :]
    cfg = load_config(str(ROOT / "configs/demo/student_mgd.yaml"), opts)
    assert cfg.DISTILL.UNSAFE_LOADING
    (run.output / "config.yaml").write_text(cfg.dump())
    (run.output / "last_checkpoint").touch()
    check_unfinished(run)
    with pytest.raises(ConfigError, match=r"SEED was 11 and is 12"):
        check_unfinished(run._replace(settings={**run.settings, "SEED": 12}))


def test_a_run_that_outlived_the_tool_is_not_started_twice(tmp_path, capsys):
    run = small_run(tmp_path, 1, "import time; time.sleep(600)")
    process = RunProcess(run, "", {})  # nobody waits for it, as after a SIGKILL of the tool
    try:
        assert Runner([run], {}, jobs=1, gpus=0).run() == 1
        assert "an earlier start still runs in" in capsys.readouterr().out
    finally:
        process.kill()


def test_an_interrupted_experiment_goes_on(demo_data, teacher_run, tmp_path, capsys, monkeypatch):
    """SIGINT while the second of four runs is between two checkpoints."""
    # With the usual threshold an untrained student detects nothing, and has no AP.
    opts = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "SOLVER.CHECKPOINT_PERIOD", 4)
    narrow = ("DEPTH", 50, "STEM_OUT_CHANNELS", 16, "WIDTH_PER_GROUP", 8, "RES2_OUT_CHANNELS", 64)
    cfg = small_config(demo_data, tmp_path / "unused", *opts)
    cfg.MODEL.RESNETS.merge_from_list(narrow)
    cfg.DISTILL.ENABLED = True
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher_run / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher_run / "model_final.pth")
    config, results = tmp_path / "run.yaml", tmp_path / "results"
    config.write_text(cfg.dump())

    def written(iterations: int = 2, longer: int = 12) -> Path:
        arms = {**ARMS, "longer": {"iterations": longer}}
        return experiment(tmp_path, config=str(config), iterations=iterations, arms=arms)

    second = tmp_path / "output/longer_seed11"
    with started(tmp_path / "log", COMPARE, written()) as process:
        while not (second / "last_checkpoint").exists() and process.exitcode is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGINT)
        process.join()
    output = (tmp_path / "log").read_text()
    assert process.exitcode == 130, output
    assert "interrupted: the same command goes on" in output
    assert list(read_file(results / "runs.jsonl")) == [("alone", 11)]
    with (second / "console.txt").open() as console:
        assert "SIGTERM: training ends after iteration" in console.read()  # with a checkpoint
        fcntl.flock(console, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free: no process of the run is left

    error = error_of(capsys, monkeypatch, written(iterations=3))
    assert "made with other settings: SOLVER.MAX_ITER was 2 and is 3. Delete its line" in error
    error = error_of(capsys, monkeypatch, written(longer=13))
    assert "made with other settings: SOLVER.MAX_ITER was 12 and is 13. Delete or rename that folder" in error

    finished = (results / "runs.jsonl").read_bytes()
    code, output, _ = run_compare(capsys, monkeypatch, written(), "--jobs", 2)
    assert code == 0
    assert output.startswith("4 runs, 1 of them finished\n")
    assert "alone, seed 11" not in output
    assert (results / "runs.jsonl").read_bytes().startswith(finished)
    records = read_file(results / "runs.jsonl")
    assert set(records) == {(arm, seed) for arm in ("alone", "longer") for seed in (11, 12)}
    starts = {name: record["resumed_from"] for name, record in records.items()}
    assert 4 <= starts.pop(("longer", 11)) < 12
    assert set(starts.values()) == {0}
    assert all(0 <= record["AP"] <= 100 and record["peak_memory_mib"] > 100 for record in records.values())

    code, output, _ = run_compare(capsys, monkeypatch, written(), "--report-only")
    assert code == 0
    table = [line.split(" | ")[:2] for line in output.splitlines() if line.startswith("|")]
    assert table[2:] == [["| alone", "2"], ["| longer (12 iterations)", "2"]]
