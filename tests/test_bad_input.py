"""Bad input ends in one line that names key, value and remedy, with exit code 2 and nothing written."""

from __future__ import annotations

import json
import os

import pytest
import torch
from conftest import ROOT, run_tool

from mgd_det.run import argument_parser, main


@pytest.fixture
def refused(mgd_cfg, tmp_path, capsys):
    """Run a config through the command's main function and return the line that it ends with."""

    def run(cfg=mgd_cfg, *opts) -> str:
        (tmp_path / "run.yaml").write_text(cfg.dump())
        command = ["--config-file", str(tmp_path / "run.yaml"), "--num-gpus", "0", *map(str, opts)]
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(SystemExit) as exit_info:
            main(argument_parser("").parse_args(command))
        assert exit_info.value.code == 2
        assert sorted(os.listdir(tmp_path)) == before, "something was written"
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture
def partial_weights(teacher_run, tmp_path):
    state = torch.load(teacher_run / "model_final.pth")["model"]
    del state["head.cls_score.bias"]
    torch.save({"model": state}, tmp_path / "partial.pth")
    return str(tmp_path / "partial.pth")


TEACHER_CONFIG = "DISTILL.TEACHER.CONFIG_FILE"
TEACHER_WEIGHTS = "DISTILL.TEACHER.WEIGHTS"

CASES = {
    "no teacher": ([TEACHER_CONFIG, ""], [TEACHER_CONFIG, "no teacher", "model-zoo name"]),
    "a teacher config that is not there": (
        [TEACHER_CONFIG, "gone.yaml"],
        [TEACHER_CONFIG, "'gone.yaml'", "neither a file", "path of a config"],
    ),
    "an unknown zoo name": (
        [TEACHER_CONFIG, "COCO-Detection/retinanet_R_51.yaml"],
        [TEACHER_CONFIG, "retinanet_R_51", "model-zoo"],
    ),
    "teacher weights that are not there": (
        [TEACHER_WEIGHTS, "gone.pth"],
        [TEACHER_WEIGHTS, "'gone.pth'", "no such weight file"],
    ),
    "a path config without weights": (
        [TEACHER_WEIGHTS, ""],
        [TEACHER_WEIGHTS, "names no trained weights", "model_final.pth"],
    ),
    "teacher overrides of unknown keys": (
        ["DISTILL.TEACHER.OPTS", ["MODEL.NONSENSE", 1]],
        ["overrides", "MODEL.NONSENSE"],
    ),
    "an unknown reducer": (
        ["DISTILL.MGD.REDUCER", "maximum"],
        ["DISTILL.MGD.REDUCER = 'maximum'", "unknown", "'absolute_max'", "'sp'"],
    ),
    "an unknown margin": (
        ["DISTILL.MGD.MARGIN", "wide"],
        ["DISTILL.MGD.MARGIN = 'wide'", "'empirical'"],
    ),
    "an unknown norm": (["DISTILL.MGD.NORM", "XN"], ["DISTILL.MGD.NORM = 'XN'", "'GN'"]),
    "an unknown method": (
        ["DISTILL.METHODS", ["magic"]],
        ["DISTILL.METHODS = ['magic']", "no method 'magic'", "'mgd'"],
    ),
    "an unknown tap": (
        ["DISTILL.MGD.TAPS", ["res3", "res9"]],
        ["DISTILL.MGD.TAPS", "res9", "'res2', 'res3', 'res4', 'res5', 'res2_relu'", "'p3'"],
    ),
    "no taps": (["DISTILL.MGD.TAPS", []], ["DISTILL.MGD.TAPS = []", "Name each tap once"]),
    "a tap twice": (["DISTILL.MGD.TAPS", ["res3", "res3"]], ["DISTILL.MGD.TAPS", "twice"]),
    "weights that do not fit the taps": (
        ["DISTILL.MGD.WEIGHTS", [0.1, 0.2]],
        ["DISTILL.MGD.WEIGHTS = [0.1, 0.2]", "2 weights for 3 taps"],
    ),
    "a tap behind frozen layers": (
        ["DISTILL.MGD.TAPS", ["res2"], "MODEL.BACKBONE.FREEZE_AT", 2],
        ["DISTILL.MGD.TAPS = ['res2']", "no trainable weight", "MODEL.BACKBONE.FREEZE_AT"],
    ),
    "a negative period": (
        ["DISTILL.MGD.UPDATE.PERIOD", -5],
        ["DISTILL.MGD.UPDATE.PERIOD = -5", "at least 0"],
    ),
    "no images to match on": (
        ["DISTILL.MGD.UPDATE.NUM_IMAGES", 0],
        ["DISTILL.MGD.UPDATE.NUM_IMAGES = 0", "at least 1"],
    ),
    "the distiller as its own student": (
        ["DISTILL.STUDENT_ARCHITECTURE", "DistilledDetector"],
        ["DISTILL.STUDENT_ARCHITECTURE = 'DistilledDetector'", "RetinaNet"],
    ),
    "an unknown student": (
        ["DISTILL.STUDENT_ARCHITECTURE", "YOLO"],
        ["DISTILL.STUDENT_ARCHITECTURE = 'YOLO'", "RetinaNet"],
    ),
    "an image format nobody can convert": (
        ["DISTILL.TEACHER.OPTS", ["INPUT.FORMAT", "YUV-BT.601"]],
        ["INPUT.FORMAT = 'RGB'", "YUV-BT.601"],
    ),
    "student weights that are not there": (
        ["MODEL.WEIGHTS", "gone.pth"],
        ["MODEL.WEIGHTS = 'gone.pth'", "no such weight file"],
    ),
    "a data set that is not registered": (
        ["DATASETS.TRAIN", ("nowhere",)],
        ["DATASETS.TRAIN = 'nowhere'", "DATASETS.REGISTER"],
    ),
    "an unknown optimiser": (
        ["SOLVER.OPTIMIZER", "Lion"],
        ["SOLVER.OPTIMIZER = 'Lion'", "AdamW"],
    ),
    "an unknown precision": (
        ["SOLVER.AMP.DTYPE", "float8"],
        ["SOLVER.AMP.DTYPE = 'float8'", "'bfloat16'"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_configs_that_cannot_work(case, mgd_cfg, refused):
    opts, parts = CASES[case]
    mgd_cfg.merge_from_list(opts)
    error = refused(mgd_cfg)
    assert [part for part in parts if part not in error] == []


def test_a_truncated_teacher(mgd_cfg, refused, teacher_run, tmp_path):
    content = (teacher_run / "model_final.pth").read_bytes()
    (tmp_path / "torn.pth").write_bytes(content[: len(content) // 2])
    mgd_cfg.DISTILL.TEACHER.WEIGHTS = str(tmp_path / "torn.pth")
    error = refused(mgd_cfg)
    assert "DISTILL.TEACHER.WEIGHTS" in error
    assert "not a whole weight file" in error


def test_weights_of_another_architecture(mgd_cfg, refused):
    mgd_cfg.DISTILL.TEACHER.OPTS = ["MODEL.RESNETS.DEPTH", 101]
    error = refused(mgd_cfg)
    assert "does not hold all weights of the teacher" in error
    assert "backbone.bottom_up.* (" in error
    assert "ALLOW_PARTIAL_WEIGHTS" in error


def test_a_teacher_that_lacks_one_tensor(mgd_cfg, refused, partial_weights):
    mgd_cfg.DISTILL.TEACHER.WEIGHTS = partial_weights
    assert "head.cls_score.* (1)" in refused(mgd_cfg)


def test_taps_of_different_strides(mgd_cfg, refused):
    mgd_cfg.DISTILL.TEACHER.ALLOW_PARTIAL_WEIGHTS = True
    mgd_cfg.DISTILL.TEACHER.OPTS = [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.RES5_DILATION", 2),
        *("MODEL.RETINANET.IN_FEATURES", ["res5"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32]]),
    ]
    error = refused(mgd_cfg)
    assert "DISTILL.MGD.TAPS" in error
    assert "at 'res5' the student's features have stride 32 and the teacher's 16" in error


def test_a_tap_that_the_teacher_lacks(mgd_cfg, refused):
    mgd_cfg.DISTILL.MGD.TAPS = ["p3"]
    mgd_cfg.DISTILL.TEACHER.ALLOW_PARTIAL_WEIGHTS = True
    mgd_cfg.DISTILL.TEACHER.OPTS = [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RETINANET.IN_FEATURES", ["res5"]),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[32]]),
    ]
    error = refused(mgd_cfg)
    assert "this teacher lacks one of the taps ['p3']" in error


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda content: None, "does not exist"),
        (lambda content: "{", "is not JSON"),
        (lambda content: json.dumps({**content, "annotations": []}), "no boxes to train on"),
        (
            lambda content: json.dumps(
                {**content, "categories": content["categories"] + [{"id": 9, "name": "more"}]}
            ),
            "MODEL.RETINANET.NUM_CLASSES = 6",
        ),
    ],
    ids=["missing", "not JSON", "no boxes", "a class too many"],
)
def test_annotations(change, part, mgd_cfg, refused, tmp_path):
    _, annotations, root = mgd_cfg.DATASETS.REGISTER[0]
    with open(annotations) as f:
        content = change(json.load(f))
    if content is not None:
        (tmp_path / "changed.json").write_text(content)
    name = f"bad_{tmp_path}"
    mgd_cfg.DATASETS.REGISTER = [
        *mgd_cfg.DATASETS.REGISTER,
        [name, str(tmp_path / "changed.json"), root],
    ]
    mgd_cfg.DATASETS.TRAIN = (name,)
    error = refused(mgd_cfg)
    assert name in error
    assert part in error


def test_unknown_overrides(mgd_cfg, refused):
    assert "DISTILL.MGD.REDUCERS" in refused(mgd_cfg, "DISTILL.MGD.REDUCERS", "amp")


def test_evaluating_what_was_never_trained(mgd_cfg, refused):
    error = refused(mgd_cfg, "--eval-only")
    assert "MODEL.WEIGHTS" in error
    assert "model_final.pth" in error


def test_a_config_file_that_is_not_there_in_a_process_of_its_own(tmp_path):
    command = [ROOT / "tools/train_net.py", "--config-file", "gone.yaml", "--num-gpus", 0]
    result = run_tool(*command, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: --config-file = 'gone.yaml'")
    assert list(tmp_path.iterdir()) == []


def test_more_gpus_than_there_are(tmp_path):
    command = [ROOT / "tools/train_net.py", "--config-file", "any.yaml", "--num-gpus", 99]
    result = run_tool(*command, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert "--num-gpus = 99" in result.stderr
