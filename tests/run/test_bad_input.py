"""Bad input ends in one line that names key, value and remedy, with exit code 2 and nothing written."""

from __future__ import annotations

import json
import os

import pytest
import torch
from helpers.commands import ROOT, run_tool
from helpers.detectors import small_config

from mgd_det.run.main import argument_parser, main


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
    "a step of the learning rate at the end": (
        ["SOLVER.STEPS", (2, 4)],
        ["SOLVER.STEPS = (2, 4)", "SOLVER.MAX_ITER", "steps below it"],
    ),
    "an unknown precision of the teacher": (
        ["DISTILL.TEACHER.DTYPE", "half"],
        ["DISTILL.TEACHER.DTYPE", "'half'", "float16"],
    ),
    "teacher overrides of unknown keys": (
        ["DISTILL.TEACHER.OPTS", ["MODEL.NONSENSE", 1]],
        ["DISTILL.TEACHER.OPTS", "MODEL.NONSENSE"],
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
        ["DISTILL.MGD.LOSS_WEIGHTS", [0.1, 0.2]],
        ["DISTILL.MGD.LOSS_WEIGHTS = [0.1, 0.2]", "2 weights for 3 taps"],
    ),
    "a tap behind frozen layers": (
        ["DISTILL.MGD.TAPS", ["res2"], "MODEL.BACKBONE.FREEZE_AT", 2],
        ["DISTILL.MGD.TAPS = ['res2']", "no trainable weight", "MODEL.BACKBONE.FREEZE_AT"],
    ),
    "a negative period": (
        ["DISTILL.MATCHING.PERIOD", -5],
        ["DISTILL.MATCHING.PERIOD = -5", "at least 0"],
    ),
    "no images to match on": (
        ["DISTILL.MATCHING.NUM_IMAGES", 0],
        ["DISTILL.MATCHING.NUM_IMAGES = 0", "at least 1"],
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
    "a network that cannot be built": (
        ["MODEL.RESNETS.DEPTH", 17],
        ["DISTILL.STUDENT_ARCHITECTURE", "cannot build this network", "MODEL keys"],
    ),
    "a teacher that cannot be built": (
        ["DISTILL.TEACHER.OPTS", ["MODEL.RESNETS.DEPTH", 17]],
        ["DISTILL.TEACHER.CONFIG_FILE", "cannot build this network"],
    ),
    "negative loss weights": (
        ["DISTILL.MGD.LOSS_WEIGHTS", [-1.0]],
        ["DISTILL.MGD.LOSS_WEIGHTS = [-1.0]", "at least 0"],
    ),
    "residuals without a norm to zero": (
        ["MODEL.RESNETS.ZERO_INIT_RESIDUAL", True, "MODEL.RESNETS.NORM", ""],
        ["MODEL.RESNETS.ZERO_INIT_RESIDUAL = True", "MODEL.RESNETS.NORM is ''"],
    ),
    "exact resume with a sampler of its own": (
        ["DISTILL.EXACT_RESUME", True, "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"],
        ["DATALOADER.SAMPLER_TRAIN", "DISTILL.EXACT_RESUME False"],
    ),
    "more classes than the data evaluated on": (
        ["MODEL.RETINANET.NUM_CLASSES", 80],
        ["MODEL.RETINANET.NUM_CLASSES = 80", "DATASETS.TEST has 6 classes"],
    ),
    "a teacher that must do better than perfect": (
        ["DISTILL.TEACHER.MIN_AP", 101.0],
        ["DISTILL.TEACHER.MIN_AP = 101.0", "from 0 to 100"],
    ),
    "no images to check the teacher on": (
        ["DISTILL.TEACHER.CHECK_IMAGES", 0],
        ["DISTILL.TEACHER.CHECK_IMAGES = 0", "at least 1"],
    ),
    "a teacher check without a data set": (
        ["DISTILL.TEACHER.MIN_AP", 30.0, "DATASETS.TEST", ()],
        ["DATASETS.TEST", "nothing to evaluate on"],
    ),
    "a teacher check on other classes": (
        ["DISTILL.TEACHER.MIN_AP", 30.0, "DISTILL.TEACHER.OPTS", ["MODEL.RETINANET.NUM_CLASSES", 80]],
        ["MODEL.RETINANET.NUM_CLASSES = 80", "DATASETS.TEST has 6 classes"],
    ),
    "a negative gradient period": (
        ["DISTILL.GRADIENT_PERIOD", -1],
        ["DISTILL.GRADIENT_PERIOD = -1", "at least 0"],
    ),
    "logits of other classes": (
        [
            *("DISTILL.METHODS", ["logits"]),
            *("DISTILL.TEACHER.OPTS", ["MODEL.RETINANET.NUM_CLASSES", 80]),
            *("DISTILL.TEACHER.ALLOW_PARTIAL_WEIGHTS", True),
        ],
        ["DISTILL.METHODS = 'logits'", "the student has 6 classes", "the teacher 80", "leave"],
    ),
    "logits of other anchors": (
        [
            *("DISTILL.METHODS", ["logits"]),
            *(
                "DISTILL.TEACHER.OPTS",
                ["MODEL.ANCHOR_GENERATOR.SIZES", [[8, 9, 10], [16, 17, 18]] * 2 + [[7, 8, 9]]],
            ),
        ],
        ["DISTILL.METHODS = 'logits'", "the student's anchors are", "MODEL.ANCHOR_GENERATOR"],
    ),
    "hashing at a head that the student lacks": (
        [
            *("DISTILL.METHODS", ["lsh"], "DISTILL.STUDENT_ARCHITECTURE", "GeneralizedRCNN"),
            *("MODEL.ROI_HEADS.NUM_CLASSES", 6, "MODEL.ROI_HEADS.NAME", "Res5ROIHeads"),
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res4"]),
            *("MODEL.ROI_HEADS.IN_FEATURES", ["res4"], "MODEL.RPN.IN_FEATURES", ["res4"]),
            *("MODEL.ANCHOR_GENERATOR.SIZES", [[32, 64]], "MODEL.RESNETS.DEPTH", 50),
            *("MODEL.RESNETS.RES2_OUT_CHANNELS", 256),
        ],
        ["DISTILL.LSH.TAPS = ['head']", "GeneralizedRCNN has no head"],
    ),
    "inheriting what is not there": (
        ["DISTILL.INHERIT", ["neck"]],
        ["DISTILL.INHERIT = ['neck']", "the student has no module 'neck'", '"fpn"'],
    ),
    "inheriting what does not fit": (
        ["DISTILL.INHERIT", ["backbone.fpn_lateral3"], "MODEL.FPN.OUT_CHANNELS", 24],
        ["DISTILL.INHERIT", "no tensor of 'backbone.fpn_lateral3'", "widths"],
    ),
    "a hidden layer of negative width": (
        ["DISTILL.METHODS", ["channel_mlp"], "DISTILL.CHANNEL_MLP.HIDDEN", -3],
        ["DISTILL.CHANNEL_MLP.HIDDEN = -3", "at least 0"],
    ),
    "a method named twice": (
        ["DISTILL.METHODS", ["mgd", "logits", "mgd"]],
        ["DISTILL.METHODS = ['mgd', 'logits', 'mgd']", "names 'mgd' twice"],
    ),
    "a LazyConfig's overrides for a yaml config": (
        ["DISTILL.STUDENT_OPTS", ["model.num_classes=12"]],
        ["DISTILL.STUDENT_OPTS = ['model.num_classes=12']", "'RetinaNet' is described by the MODEL keys"],
    ),
    "an unknown assignment": (
        ["DISTILL.EXPERIMENT.ASSIGNMENT", "lucky"],
        ["DISTILL.EXPERIMENT.ASSIGNMENT = 'lucky'", "'random'"],
    ),
    "a negative seed of an assignment": (
        ["DISTILL.EXPERIMENT.ASSIGNMENT", "random", "DISTILL.EXPERIMENT.ASSIGNMENT_SEED", -1],
        ["DISTILL.EXPERIMENT.ASSIGNMENT_SEED = -1", "at least 0"],
    ),
    "a tap in the head for a method of the backbone": (
        ["DISTILL.MGD.TAPS", ["res4", "head"]],
        ["DISTILL.MGD.TAPS = ['res4', 'head']", "does not work on 'head'"],
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


def test_taps_of_different_strides(cfg_with_fpnless_teacher, refused):
    error = refused(cfg_with_fpnless_teacher)
    assert "DISTILL.MGD.TAPS" in error
    assert "at 'res5' the student has features of stride 32 and the teacher features of stride 16" in error


def test_a_tap_that_the_teacher_lacks(cfg_with_fpnless_teacher, refused):
    cfg_with_fpnless_teacher.DISTILL.MGD.TAPS = ["p3"]
    assert "this teacher lacks one of the taps ['p3']" in refused(cfg_with_fpnless_teacher)


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


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"model": {"a": "text"}}, "not a whole weight file"),
        ({"epoch": 3}, "not a whole weight file"),
        ({"model": {}}, "nothing in it fits"),
        ({"model": {"other": torch.zeros(1)}}, "nothing in it fits"),
    ],
)
@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "DISTILL.TEACHER.WEIGHTS"])
def test_files_with_no_weights_of_ours(content, part, key, mgd_cfg, refused, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    mgd_cfg.merge_from_list([key, str(tmp_path / "other.pth")])
    error = refused(mgd_cfg)
    assert key in error
    assert part in error
    assert len(error.splitlines()) == 1


RESUMED = {
    "other taps": (["DISTILL.MGD.TAPS", ["res3"]], "DISTILL.MGD"),
    "another reducer": (["DISTILL.MGD.REDUCER", "sparse"], "DISTILL.MGD.REDUCER = 'sparse'"),
    "another norm": (["DISTILL.MGD.NORM", ""], "DISTILL.MGD"),
    "another norm with the same parameters": (["DISTILL.MGD.NORM", "BN"], "DISTILL.MGD.NORM = 'BN'"),
    "another method": (["DISTILL.METHODS", ["mgd", "logits"]], "DISTILL.METHODS = ['mgd', 'logits']"),
    "another teacher": (["DISTILL.TEACHER.OPTS", ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64]], "matching to"),
    "no distillation": (["DISTILL.ENABLED", False], "DISTILL.ENABLED = False"),
    "another optimiser": (["SOLVER.OPTIMIZER", "SGD"], "SOLVER.OPTIMIZER = 'SGD'"),
}


@pytest.fixture(scope="module")
def interrupted(demo_data, teacher_run, tmp_path_factory):
    """The output folder of a distillation that was stopped after two iterations."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    cfg = small_config(demo_data, folder, "DATASETS.TEST", (), "SOLVER.MAX_ITER", 2)
    cfg.DISTILL.ENABLED = True
    cfg.DISTILL.TEACHER.CONFIG_FILE = str(teacher_run / "config.yaml")
    cfg.DISTILL.TEACHER.WEIGHTS = str(teacher_run / "model_final.pth")
    (folder.parent / "run.yaml").write_text(cfg.dump())
    run_tool(ROOT / "tools/train_net.py", "--config-file", folder.parent / "run.yaml", "--num-gpus", 0)
    return folder


def test_masks_as_run_lengths_where_polygons_are_asked_for(mgd_cfg, refused):
    """Some of the demonstration's are."""
    mgd_cfg.MODEL.MASK_ON = True
    error = refused(mgd_cfg)
    assert "INPUT.MASK_FORMAT = 'polygon'" in error
    assert 'Set it to "bitmask"' in error


@pytest.mark.parametrize("case", RESUMED)
def test_resuming_as_something_else(case, interrupted, mgd_cfg, refused):
    opts, part = RESUMED[case]
    before = {path.name: path.stat().st_mtime_ns for path in interrupted.iterdir()}
    mgd_cfg.OUTPUT_DIR = str(interrupted)
    if case == "another teacher":
        mgd_cfg.DISTILL.TEACHER.ALLOW_PARTIAL_WEIGHTS = True
    mgd_cfg.merge_from_list(opts)
    error = refused(mgd_cfg, "--resume")
    assert part in error
    assert len(error.splitlines()) == 1
    assert {path.name: path.stat().st_mtime_ns for path in interrupted.iterdir()} == before


def test_a_last_checkpoint_that_names_nothing(mgd_cfg, refused, tmp_path):
    os.makedirs(tmp_path / "run")
    (tmp_path / "run/last_checkpoint").write_text("model_0000099.pth")
    error = refused(mgd_cfg, "--resume")
    assert "OUTPUT_DIR" in error
    assert "'model_0000099.pth'" in error


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda path: path.mkdir(), "cannot be read (IsADirectoryError)"),
        (lambda path: path.write_bytes(b"\x80\x02}q\x00."), "cannot be read (UnicodeDecodeError)"),
        (lambda path: path.write_bytes(b"PK\x00\x00"), "'PK\\x00\\x00', which is not there"),
        (lambda path: path.write_text(""), "'', which is not there"),
        (lambda path: path.write_text("../other.pth"), "'../other.pth', which is not a name in this folder"),
        (lambda path: path.symlink_to("gone"), "cannot be read (FileNotFoundError)"),
    ],
)
@pytest.mark.parametrize("flags", [["--resume"], ["--resume", "--eval-only"]])
def test_a_last_checkpoint_that_is_no_name(make, part, flags, mgd_cfg, refused, tmp_path):
    torch.save({"model": {}}, tmp_path / "other.pth")
    (tmp_path / "run").mkdir()
    make(tmp_path / "run/last_checkpoint")
    error = refused(mgd_cfg, *flags)
    assert f"OUTPUT_DIR = '{tmp_path}/run': its file last_checkpoint" in error
    assert part in error
    assert "start anew without --resume" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"trainer": [1, 2]}, "its entry 'trainer' is a list, not a table"),
        ({"trainer": None}, "its entry 'trainer' is a NoneType"),
        ({"trainer": {"iteration": "two"}}, "'iteration' is a str"),
        ({"trainer": {"iteration": 1, "hooks": 5}}, "'hooks' is a int"),
        ({"trainer": {"iteration": 1, "_trainer": "text"}}, "'_trainer' is a str"),
    ],
)
@pytest.mark.parametrize("exact", [False, True])
def test_a_checkpoint_with_an_odd_state_of_the_trainer(
    changes, part, exact, mgd_cfg, refused, interrupted, tmp_path
):
    saved = torch.load(interrupted / "model_final.pth")
    (tmp_path / "run").mkdir()
    torch.save({**saved, **changes}, tmp_path / "run/model_final.pth")
    (tmp_path / "run/last_checkpoint").write_text("model_final.pth")
    mgd_cfg.DISTILL.EXACT_RESUME = exact
    mgd_cfg.SEED = -1
    error = refused(mgd_cfg, "--resume")
    assert error.startswith("error: --resume = ")
    assert "model_final.pth" in error
    assert "Name an earlier checkpoint" in error
    assert exact or part in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("key", ["MODEL.WEIGHTS", "DISTILL.TEACHER.WEIGHTS"])
@pytest.mark.parametrize("name", ["torchvision://resnet999", "nowhere://model.pth"])
def test_names_of_weights_that_do_not_exist(name, key, mgd_cfg, refused):
    mgd_cfg.merge_from_list([key, name])
    error = refused(mgd_cfg)
    assert f"{key} = '{name}'" in error
    assert len(error.splitlines()) == 1


def test_an_output_folder_that_is_a_dangling_link(mgd_cfg, refused, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for folder in ("link", "link/run"):
        mgd_cfg.OUTPUT_DIR = str(tmp_path / folder)
        assert f"error: OUTPUT_DIR = '{tmp_path}/{folder}': is " in refused(mgd_cfg)


def test_an_output_folder_that_cannot_be_made(mgd_cfg, refused, tmp_path):
    (tmp_path / "file").write_text("")
    mgd_cfg.OUTPUT_DIR = str(tmp_path / "file/run")
    assert f"is to be made in {tmp_path}/file, which is no folder" in refused(mgd_cfg)
    mgd_cfg.OUTPUT_DIR = "/proc/mgd_det/run"  # also for root
    error = refused(mgd_cfg)
    assert "OUTPUT_DIR = '/proc/mgd_det/run'" in error
    assert "cannot be written to" in error


def test_an_output_folder_that_is_a_file(mgd_cfg, refused, tmp_path):
    (tmp_path / "file").write_text("")
    mgd_cfg.OUTPUT_DIR = str(tmp_path / "file")
    assert "OUTPUT_DIR" in refused(mgd_cfg)


def test_a_device_that_is_not_there(mgd_cfg, refused):
    error = refused(mgd_cfg, "MODEL.DEVICE", "warp")
    assert "MODEL.DEVICE = 'warp': there is no such device" in error


def test_operators_that_a_cpu_lacks(mgd_cfg, refused):
    resnet = mgd_cfg.MODEL.RESNETS
    resnet.DEPTH, resnet.WIDTH_PER_GROUP, resnet.RES2_OUT_CHANNELS = 50, 8, 64
    resnet.DEFORM_ON_PER_STAGE, resnet.DEFORM_MODULATED = [False, True, True, True], True
    error = refused(mgd_cfg)
    for part in ("MODEL.DEVICE = 'cpu'", "Deformable Conv is not supported on CPUs", "Train on a GPU"):
        assert part in error


def test_evaluating_a_teacher_of_other_classes(mgd_cfg, refused):
    mgd_cfg.DISTILL.TEACHER.OPTS = ["MODEL.RETINANET.NUM_CLASSES", 80]
    error = refused(mgd_cfg, "--eval-teacher")
    assert "MODEL.RETINANET.NUM_CLASSES = 80: the data set" in error
    assert "can be imitated, but not evaluated on this data: leave --eval-teacher" in error


def test_a_batch_of_no_images(mgd_cfg, refused):
    assert "SOLVER.IMS_PER_BATCH = 0: less than 1" in refused(mgd_cfg, "SOLVER.IMS_PER_BATCH", 0)


def test_drawing_what_is_not_there(tmp_path):
    command = [ROOT / "tools/draw_detections.py", "--annotations", "gone.json", "--images", tmp_path]
    result = run_tool(*command, "--out", tmp_path / "boxes.png", check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("--annotations gone.json: there is no such file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--results", "student"], "--results student: write TITLE=FILE"),
        (["--results", "student=gone.json"], "--results gone.json: there is no such file"),
        (["--results", "student=torn.json"], "--results torn.json: is not JSON (Expecting value"),
        (["--results", "student=other.json"], "not detections in COCO format (KeyError: 'score')"),
        (["--annotations", "other.json"], "--annotations other.json: no images, annotations and categories"),
        (["--images", "gone"], "--images gone: there is no such folder"),
        (["--images", "empty"], "No such file or directory: 'empty/"),
        (["--count", "0"], "--count 0: give at least 1"),
        (["--out", "boxes.nothing"], "Format 'nothing' is not supported"),
    ],
)
def test_drawing_with_wrong_arguments(arguments, message, demo_data, tmp_path):
    (tmp_path / "torn.json").write_text("[1, ")
    (tmp_path / "other.json").write_text('[{"image_id": 1}]')
    (tmp_path / "empty").mkdir()
    command = [ROOT / "tools/draw_detections.py", "--annotations", demo_data / "annotations/val.json"]
    command += ["--images", demo_data / "val", "--out", "boxes.png"]
    result = run_tool(*command, *arguments, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run", "gone"], "--run: there is no file gone/student_config.yaml"),
        (["--image", "gone.png"], "--image: there is no file gone.png"),
        (["--image", "text.png"], "--image text.png: cannot identify image file"),
        (["MODEL.NONSENSE", "1"], "overrides ['MODEL.NONSENSE', '1'] make no config: Non-existent key"),
        (["MODEL.DEVICE"], "overrides ['MODEL.DEVICE'] make no config: Override list has odd length"),
    ],
)
def test_predicting_with_wrong_arguments(arguments, message, interrupted, demo_data, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    image = sorted((demo_data / "val").iterdir())[0]
    command = [ROOT / "docs/examples/predict.py", "--run", interrupted, "--image", image]
    result = run_tool(*command, *arguments, cwd=tmp_path, check=False)
    assert result.returncode == 2
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


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


@pytest.mark.parametrize(
    "key, value",
    [
        ("DISTILL.METHODS", ["mdg"]),
        ("DISTILL.TEACHER.CONFIG_FILE", "gone.yaml"),
        ("DISTILL.TEACHER.WEIGHTS", "gone.pth"),
        ("DISTILL.BASELINE", "gone"),
        ("MODEL.WEIGHTS", "gone.pth"),
    ],
)
def test_what_takes_a_moment_is_checked_before_the_images(key, value, refused, mgd_cfg):
    mgd_cfg.DATASETS.TRAIN = ("nowhere",)  # what the check of the images would say
    mgd_cfg.merge_from_list([key, value])
    assert f"{key} = " in refused()
