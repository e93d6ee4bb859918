"""tools/export.py: the files it writes detect what PyTorch does, and run without Detectron2."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import export
import pytest
import torch
from exporting import formats
from helpers.commands import ROOT, run_tool
from helpers.detectors import distil, network, small

# TorchScript, of which torch says at every step that it would rather have us use something else.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.usefixtures("without_old_handlers"),
]

EXPORT = ROOT / "tools/export.py"
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))
# Everything is a detection, so that there is something to compare.
OPTIONS = [
    *("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
    *("TEST.DETECTIONS_PER_IMAGE", 30, "INPUT.MIN_SIZE_TEST", 160),
]
FCOS_OPTIONS = ["DISTILL.STUDENT_OPTS", ["model.test_score_thresh=0.0"]]


def save_run(folder: Path, cfg) -> torch.nn.Module:
    """Write what a run of this config would leave, and return its student."""
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    student = network(cfg).eval()
    for name, parameter in student.named_parameters():
        if any(layer in name for layer in ("cls_score", "bbox_pred", "objectness", "anchor_deltas")):
            parameter.data.mul_(0.02)  # scores that do not saturate, and boxes close to their anchors
    torch.save({"model": student.state_dict()}, folder / "model_final.pth")
    return student


@pytest.fixture
def run_of(demo_data, tmp_path):
    """Makes what a run of a kind of detector leaves."""

    def make(kind: str, *opts) -> Path:
        options = [*OPTIONS, *(FCOS_OPTIONS if kind == "fcos" else []), *opts]
        save_run(tmp_path / "run", small(demo_data, tmp_path / kind, kind, *options))
        return tmp_path / "run"

    return make


def latencies(output: str) -> dict[str, tuple[float, float]]:
    """Of the table's rows: name -> milliseconds, minimum and median."""
    rows = re.findall(r"^(\w+, \w+) .* ([\d.]+) +([\d.]+)$", output, re.M)
    return {name: (float(minimum), float(median)) for name, minimum, median in rows}


def test_a_distilled_student_beside_its_teacher(demo_data, teacher_run, tmp_path, capsys):
    cfg = small(demo_data, tmp_path / "run", "retinanet", *OPTIONS)
    run, out = tmp_path / "run", tmp_path / "out"
    student = save_run(run, distil(cfg, ["mgd"], teacher_run))
    assert export.main(["--run", str(run), "--out", str(out), "--runs", "2"]) == 0

    printed = capsys.readouterr().out
    assert f"{sum(p.numel() for p in student.parameters()):,}" in printed
    found = latencies(printed)
    assert list(found) == ["teacher, PyTorch", "student, PyTorch", "student, torchscript"]
    assert all(0 < minimum <= median for minimum, median in found.values())

    # The file, against stock Detectron2 on an image that the tool has not seen.
    image = torch.rand(3, 80, 112, generator=torch.Generator().manual_seed(1)) * 255
    with torch.no_grad():
        stock = student([{"image": image}])[0]["instances"]
        boxes, classes, scores, size = torch.jit.load(str(out / "student.ts"))(image)
    assert len(stock) == 30
    torch.testing.assert_close(boxes, stock.pred_boxes.tensor)
    torch.testing.assert_close(scores, stock.scores)
    assert torch.equal(classes, stock.pred_classes)
    assert size.tolist() == [80, 112]


WITHOUT_DETECTRON2 = """
import sys, torch, torchvision
boxes, classes, scores, size = torch.jit.load(sys.argv[1])(torch.rand(3, 70, 90) * 255)
assert "detectron2" not in sys.modules
print(len(boxes), size.tolist())
"""


def test_the_file_runs_without_detectron2(run_of, tmp_path):
    out = tmp_path / "out"
    command = [EXPORT, "--run", run_of("retinanet"), "--out", out, "--runs", 1]
    assert list(latencies(run_tool(*command).stdout)) == ["student, PyTorch", "student, torchscript"]
    fresh = [sys.executable, "-c", WITHOUT_DETECTRON2, out / "student.ts"]
    assert subprocess.run(fresh, check=True, capture_output=True, text=True).stdout == "30 [70, 90]\n"


@pytest.mark.parametrize("kind", ["faster", "mask", "fcos"])
def test_other_detectors(run_of, tmp_path, capsys, kind):
    assert export.main(["--run", str(run_of(kind)), "--out", str(tmp_path / "out"), "--runs", "1"]) == 0
    assert re.search(r"[1-9]\d* detections at \d+x\d+ and \d+x\d+ as in PyTorch", capsys.readouterr().out)
    outputs = torch.jit.load(str(tmp_path / "out/student.ts"))(torch.rand(3, 64, 96) * 255)
    assert len(outputs) == (5 if kind == "mask" else 4)


@pytest.mark.skipif(not HAS_ONNX, reason="the optional packages onnx and onnxruntime are not installed")
@pytest.mark.parametrize("kind", ["retinanet", "faster", "mask", "fcos"])
def test_onnx(run_of, tmp_path, capsys, kind):
    command = ["--run", str(run_of(kind)), "--out", str(tmp_path / "out"), "--runs", "1"]
    assert export.main([*command, "--format", "onnx"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"student\.onnx: [1-9]\d* detections", printed)
    assert list(latencies(printed)) == ["student, PyTorch", "student, onnx"]


@pytest.mark.skipif(HAS_ONNX, reason="onnx and onnxruntime are installed, so nothing is missing")
def test_onnx_without_its_packages_is_refused_at_once(tmp_path):
    result = run_tool(
        *(EXPORT, "--run", tmp_path / "none", "--out", tmp_path / "out", "--format", "onnx"), check=False
    )
    assert result.returncode == 2
    assert re.fullmatch(r"error: --format = 'onnx': .*onnxruntime.*Install them with pip.*\n", result.stderr)


def detections(boxes, scores, classes) -> dict[str, torch.Tensor]:
    return {
        "pred_boxes": torch.tensor(boxes, dtype=torch.float32),
        "scores": torch.tensor(scores),
        "pred_classes": torch.tensor(classes),
    }


LEFT, RIGHT = [0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]
TWO = detections([LEFT, RIGHT], [0.5, 0.4999], [1, 2])


def test_detections_that_agree():
    moved = [0.0625, 0.0, 10.0, 10.0]
    swapped = detections([RIGHT, moved], [0.5, 0.4999], [2, 1])
    found = formats.compare(TWO, swapped)
    assert (found.detections, found.box) == (2, 0.0625)
    assert found.score == pytest.approx(0.0001, abs=1e-6)
    assert found + formats.Agreement(3, 0.5, 0.0) == (5, 0.5, found.score)
    nothing = detections([], [], [])
    nothing["pred_boxes"] = nothing["pred_boxes"].reshape(0, 4)
    assert formats.compare(nothing, nothing) == (0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("found", "match"),
    [
        (detections([LEFT], [0.5], [1]), "finds 1 objects where PyTorch finds 2"),
        (detections([LEFT, RIGHT], [0.5, 0.5], [1, 1]), "other classes"),
        (detections([LEFT, [20.0, 0.0, 30.0, 10.5]], [0.5, 0.4999], [1, 2]), "by up to 0.5 px"),
        (detections([LEFT, RIGHT], [0.5, 0.4], [1, 2]), r"scores by up to 0\.0999"),
        (detections([LEFT, RIGHT], [0.5, float("nan")], [1, 2]), "not finite"),
    ],
)
def test_detections_that_differ(found, match):
    with pytest.raises(formats.Disagreement, match=match):
        formats.compare(TWO, found)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--runs", "0"], r"--runs = 0: less than 1"),
        (["--out", __file__], r"--out = .*test_export\.py': is a file"),
        (["--image", "gone.png"], r"--image = 'gone\.png': cannot be read"),
        (["--image", __file__], r"--image = .*: cannot be read"),
        (["--run", "gone"], r"--run = 'gone': there is no config\.yaml in it"),
    ],
)
def test_bad_input_is_one_line(run_of, tmp_path, capsys, arguments, match):
    command = ["--run", str(run_of("retinanet")), "--out", str(tmp_path / "out"), *arguments]
    assert export.main(command) == 2
    assert re.fullmatch(f"error: .*{match}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_without_test_data_an_image_must_be_named(run_of, tmp_path, capsys):
    run = run_of("retinanet", "DATASETS.TEST", ())
    assert export.main(["--run", str(run), "--out", str(tmp_path / "out")]) == 2
    assert re.search(r"--image = '': none is named.*Name one that shows objects", capsys.readouterr().err)


def test_a_student_that_finds_nothing_cannot_be_checked(run_of, tmp_path, capsys):
    run = run_of("retinanet", "MODEL.RETINANET.SCORE_THRESH_TEST", 1.0)
    assert export.main(["--run", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "the student finds nothing in it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
