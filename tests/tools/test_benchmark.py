"""tools/benchmark.py: what it measures adds up, and the document says what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import benchmark
import pytest
import torch
from benchmark import read_records, write_record
from benchmarking import parts
from benchmarking.overlap import beside_floor, teacher_overlap
from benchmarking.parts import Size, feature_costs, loader_share, one_size, re_solve, use_photos
from benchmarking.report import document, lines, not_run
from benchmarking.steps import (
    CHEAPER,
    Bench,
    cheaper_teachers,
    gradient_share,
    matching_shares,
    method_losses,
    random_batch,
)
from benchmarking.timing import Timing, in_turn
from helpers.commands import ROOT, run_tool

from mgd_det.data.datasets import check_datasets
from mgd_det.methods import method_defaults

CPU = torch.device("cpu")


def test_jobs_take_turns_and_the_warm_up_does_not_count():
    order = []
    jobs = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    found = in_turn(jobs, 3, CPU, warm_up=1)
    assert "".join(order) == "abababab"
    assert list(found) == ["a", "b"]
    assert all(0 < timing.minimum <= timing.median for timing in found.values())


def test_ratios_are_of_like_with_like():
    assert Timing(2.0, 9.0).over(Timing(1.0, 3.0)) == Timing(2.0, 3.0)


def test_the_limit_counts_the_bytes_that_must_move():
    found = one_size(Size(1, 2, 8, 4, 4), CPU, runs=1)
    # Teacher 8 planes, student, distances twice and gradient 2 each: 16; a copy moves 16, too.
    assert found["limit"] == 1.0
    assert {"copy", "plain torch", "in sequence"} <= set(found["ratios"])
    assert found["ratios"]["copy"] == {"minimum": 1.0, "median": 1.0}


def test_half_precision_moves_half_the_bytes_but_for_the_distances():
    """Teacher 8 planes, student and gradient 2 each, of 2 bytes; distances 2 planes of 4 bytes, twice."""
    found = one_size(Size(1, 2, 8, 4, 4), CPU, 1, torch.bfloat16)
    assert found["limit"] == (8 * 2 + 2 * 2 * 2 + 2 * 2 * 4) / (2 * 8 * 2)


def test_compiled_forms_are_beside_the_others(monkeypatch):
    """Up to the graphs that torch.compile takes from them; generating code from these takes long."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found = one_size(Size(1, 2, 8, 4, 4), CPU, 1, compiled=True)
    assert {"plain, compiled", "sequence, compiled"} <= set(found["ratios"])


def test_the_report_says_where_a_compiled_form_is_near_the_kernel():
    def row(size: str, fused: float, plain: float, sequence: float) -> dict:
        ratios = {
            "fused": fused,
            "plain torch": 9.0,
            "plain, compiled": plain,
            "sequence, compiled": sequence,
        }
        timings = {kind: {"minimum": value, "median": value} for kind, value in ratios.items()}
        limits = {"copy_seconds": 1.0, "limit": 1.0, "dtype": "bfloat16"}
        return {"size": size, "what": "", **limits, "ratios": timings}

    printed = "\n".join(lines({"loss": [row("(near)", 1.0, 3.0, 1.25), row("(far)", 1.0, 1.4, 3.0)]}))
    assert "at 1 of these 2 sizes: (near), bfloat16." in printed


def test_solves_the_matrices_asked_for():
    costs = {"wide": torch.rand(4, 8), "narrow": torch.rand(6, 3)}
    rows = re_solve(costs, 1)
    assert [(row["tap"], row["matrix"]) for row in rows] == [("wide", [4, 8]), ("narrow", [6, 3])]
    assert all(row["ratio"]["minimum"] > 0 for row in rows)


@pytest.mark.parametrize("trained", [False, True])
def test_costs_are_those_of_the_networks_on_photographs(trained, mgd_cfg, tmp_path):
    mgd_cfg.DISTILL.MGD.TAPS = ["res3"]
    (cost,) = feature_costs(mgd_cfg, tmp_path, trained).values()
    assert cost.shape == (128, 256)
    assert 0 < cost.min() < cost.max() < 4
    assert (tmp_path / "teacher.pth").exists() is not trained


def test_images_of_a_batch_differ_in_size_and_have_their_boxes_inside():
    batch = random_batch(3, (100, 120), classes=2)
    assert [x["image"].shape[1:] for x in batch] == [(100, 120), (90, 120), (80, 120)]
    for x in batch:
        boxes = x["instances"].gt_boxes.tensor
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= 120
        assert boxes[:, 3].max() <= x["height"]
        assert set(x["instances"].gt_classes.tolist()) <= {0, 1}


def test_share_of_comparing_gradients_by_hand(mgd_cfg):
    """Ten comparisons at the start and 20 later, each half a step more, in 4,000 steps."""
    mgd_cfg.DISTILL.GRADIENT_PERIOD, mgd_cfg.SOLVER.MAX_ITER = 200, 4000
    assert gradient_share(mgd_cfg, 1.5)["share"] == pytest.approx(30 * 0.5 / 4000)


def test_shares_of_matching_by_hand():
    """Batches of 4 were measured; training is 100 iterations of 8: 100 * 2 * 5 s."""
    seconds = {"distilled": 5.0, "observe": 1.0, "pass": 3.0, "solve": 2.0}
    schedule = {"passes": 2, "images of a pass": 40, "iterations": 100, "batch": 8, "online every": 10}
    shares = matching_shares(seconds, 4, schedule)
    # Two passes of 10 batches, two solvings; a fifth more for every tenth step.
    assert shares["pass"] == pytest.approx((2 * 10 * 3 + 2 * 2) / 1000)
    assert shares["first pass"] == pytest.approx(10 * 3 / 1000)
    assert shares["online"] == pytest.approx(0.2 / 10 + 2 * 2 / 1000)


SETTING = {"config": "x.yaml", "images": 2, "size": [64, 96], "dtype": "float32", "overrides": []}


@pytest.fixture(scope="module")
def record(demo_data, tmp_path_factory) -> dict:
    file = tmp_path_factory.mktemp("benchmark") / "figures.json"
    register = [["benchmark_train", f"{demo_data}/annotations/train.json", f"{demo_data}/train"]]
    narrow = ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.RESNETS.WIDTH_PER_GROUP", 16]
    narrow += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 128]
    opts = [
        *("DATASETS.REGISTER", json.dumps(register), "DATASETS.TRAIN", '("benchmark_train",)'),
        *("MODEL.FPN.OUT_CHANNELS", "16", "DISTILL.TEACHER.OPTS", json.dumps(narrow)),
        *("DISTILL.TEACHER.CONFIG_FILE", "configs/demo/teacher.yaml"),
        *("DISTILL.MGD.TAPS", '["res3", "res5"]', "DISTILL.MGD.LOSS_WEIGHTS", "[2.0, 1.0]"),
    ]
    command = ["tools/benchmark.py", "--config-file", "configs/demo/student_mgd.yaml"]
    command += ["--only", "steps", "memory", "taps", "data", *("--runs", "1", "--images", "2")]
    command += ["--size", "64", "96"]
    command += ["--device", "cpu", "--json", file, "--record", "small", "--", *opts]
    done = run_tool(*command, cwd=ROOT)
    found = json.loads(file.read_text())["small"]
    assert done.stdout.rstrip() == "\n".join(lines(found)).rstrip()
    return found


def test_a_run_of_the_command(record):
    steps = record["steps"]["mgd"]
    seconds = {kind: taken["minimum"] for kind, taken in steps["seconds"].items()}
    assert set(seconds) == {"student", "floor", "distilled", "measuring", "observe", "pass", "solve"}
    assert steps["over the floor"]["minimum"] == pytest.approx(seconds["distilled"] / seconds["floor"])
    assert record["memory"]["mgd"]["floor"] > 0
    assert [row["taps"] for row in record["taps"]["mgd"]] == [["res3"], ["res3", "res5"]]
    flops = [steps["flops"], *(row["flops"] for row in record["taps"]["mgd"])]
    assert len({counted["student"] for counted in flops}) == 1
    # The teacher stops behind the last tap; MGD has no convolution of its own.
    floors = [counted["floor"] for counted in flops]
    assert flops[0]["student"] < floors[1] < floors[2] == floors[0] == flops[0]["distilled"]
    assert record["data"]["workers"] == 1


def test_records_are_added_to_a_file_by_name(tmp_path):
    file = tmp_path / "new" / "figures.json"
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        write_record(file, name, {"loss": value})
    assert read_records(file) == {"a": {"loss": 3}, "b": {"loss": 2}}
    assert list(file.parent.iterdir()) == [file]


def test_the_document_names_command_machine_and_what_was_not_run(record):
    text = document([record])
    for part in (
        record["command"],
        record["machine"],
        record["versions"],
        "| mgd |",
        "What has not been run",
    ):
        assert part in text


def test_what_no_gpu_has_run_is_listed_by_parts():
    parts = ("The fused loss", "Training steps", "Peak memory", "The teacher's forward pass in each")

    def listed(*records: dict) -> list[str]:
        return [part for part in parts if f"- {part}" in not_run(records)]

    on_cpu = {"device": "cpu", "steps": {}}
    assert listed({"loss": []}, on_cpu) == list(parts)  # older files name no device
    assert listed({"device": "cuda", "loss": [], "memory": {}}, on_cpu) == [parts[1], parts[3]]
    everything = {"device": "cuda:0", "loss": [], "steps": {}, "memory": {}, "teacher": []}
    assert listed(everything) == []
    assert not_run([{**everything, "losses": {}, "cheaper": {}, "overlap": {}}]) == ""


def test_ways_to_run_the_teacher_are_beside_the_plain_one(mgd_cfg, monkeypatch):
    """Without the compiler, which takes long and has its own tests."""
    monkeypatch.delitem(parts.WAYS, "COMPILE True")
    rows = parts.teacher_ways(mgd_cfg, 2, (64, 96), None, runs=1)
    assert [row["way"] for row in rows] == list(parts.WAYS)
    assert rows[0]["ratio"] == {"minimum": 1, "median": 1}
    assert rows[1]["ratio"]["minimum"] == rows[1]["seconds"]["minimum"] / rows[0]["seconds"]["minimum"]
    printed = "\n".join(lines({"teacher": rows, "setting": SETTING}))
    assert f"| DTYPE bfloat16 | {rows[2]['seconds']['median']:.3f} s |" in printed


def test_a_cheaper_teacher_is_measured_over_all_steps_of_a_period(mgd_cfg, tmp_path):
    rows = cheaper_teachers(mgd_cfg, "mgd", (tmp_path, 2, (64, 96), None), runs=1)
    assert [row["way"] for row in rows] == list(CHEAPER)
    assert all(row["seconds"]["minimum"] > 0 for row in rows)
    printed = "\n".join(lines({"cheaper": {"mgd": rows}, "setting": SETTING}))
    assert f"| EVERY 4 | {rows[5]['seconds']['median']:.3f} s |" in printed


def test_the_teacher_runs_once_in_a_period(mgd_cfg, tmp_path):
    mgd_cfg.DISTILL.TEACHER.EVERY = 4
    bench = Bench(mgd_cfg, "mgd", tmp_path, images=2, size=(64, 96), dtype=None)
    passes, steps = [], []
    bench.model.teacher.model.backbone.bottom_up.stem.register_forward_hook(lambda *_: passes.append(1))
    bench.model.student.backbone.bottom_up.stem.register_forward_hook(lambda *_: steps.append(1))
    bench.cycle()
    assert (len(passes), len(steps)) == (1, 4)


def test_experiments_without_a_gpu_say_what_refused_them(mgd_cfg, tmp_path):
    bench = Bench(mgd_cfg, "mgd", tmp_path, images=2, size=(64, 96), dtype=None)
    rows = teacher_overlap(bench, runs=1)
    assert [row["way"] for row in rows] == ["on a stream of its own", "as a CUDA graph"]
    if not torch.cuda.is_available():
        assert all(row["refused"] for row in rows)
    row = beside_floor(bench, lambda bench: bench.floor_step, runs=1)
    assert row["seconds"]["minimum"] > 0
    printed = "\n".join(lines({"overlap": {"mgd": [*rows, {"way": "as it is", **row}]}, "setting": SETTING}))
    assert f"| as it is | {row['seconds']['median']:.3f} s |" in printed


@pytest.mark.parametrize("method", method_defaults())
def test_losses_of_every_method_are_run_without_the_networks(method, mgd_cfg, tmp_path):
    bench = Bench(mgd_cfg, method, tmp_path, images=2, size=(64, 96), dtype=None)
    found = method_losses(bench, runs=1)
    assert set(found["ratios"]) == ({"losses", "observe"} if method == "mgd" else {"losses"})
    assert all(parameter.grad is None for parameter in bench.model.student.parameters())
    if method == "mgd":  # res3 to res5 of two images, in float32
        assert found["mebibytes"] * 2**20 == 2 * (256 * 8 * 12 + 512 * 4 * 6 + 1024 * 2 * 3) * 4


def test_the_loader_reads_photographs_where_there_is_no_data(tmp_path, mgd_cfg):
    mgd_cfg.INPUT.MIN_SIZE_TRAIN, mgd_cfg.DATALOADER.NUM_WORKERS = (427,), 0
    use_photos(mgd_cfg, tmp_path)
    check_datasets(mgd_cfg, training=True)
    found = loader_share(mgd_cfg, images=2, batches=1, step=10.0)
    assert found["of a step"] == found["seconds"] / 10
    assert found["images a second"] == 2 / found["seconds"]


@pytest.mark.parametrize("content", ["not JSON", "[]", '{"command": "make demo"}'])
def test_a_file_of_something_else_is_found_before_the_measuring(content, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    file = tmp_path / "figures.json"
    file.write_text(content)
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--json", str(file)])
    problem = f"error: --json = '{file}': holds something else than records of measurements. "
    assert (end.value.code, file.read_text()) == (2, content)
    assert capsys.readouterr().err == f"{problem}Name another file, or a new one.\n"


def test_a_report_is_written_where_the_command_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    benchmark.main(["--report", "new/report.md"])
    assert (tmp_path / "new/report.md").read_text() == (ROOT / "docs/performance.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--device", "nonsense"], "--device = 'nonsense': cannot be used here ("),
        (["--device", "cuda:99"], "--device = 'cuda:99': cannot be used here ("),
        (["--methods", "mgd", "nonsense"], "--methods = 'nonsense': there is no such method. Choose among"),
    ],
)
def test_what_is_not_there_is_found_before_the_measuring(arguments, problem, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        benchmark.main(["--device", "cpu", *arguments])
    said = capsys.readouterr()
    assert (end.value.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert said.err.startswith(f"error: {problem}")


def test_an_unknown_config_is_one_line():
    """In a process that imports everything itself, and may warn of nothing."""
    command = [sys.executable, "tools/benchmark.py", "--config-file", "gone.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --config-file = 'gone.yaml'")
    assert len(done.stderr.splitlines()) == 1
