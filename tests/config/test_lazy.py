"""Students and teachers that a LazyConfig describes."""

from __future__ import annotations

import os

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model
from helpers.commands import ROOT, run_tool

from mgd_det.config.lazy import build_lazy, image_format, load_lazy, num_classes
from mgd_det.errors import ConfigError

FCOS = str(ROOT / "configs/models/fcos_r18.py")
# As the demonstration's students: from scratch, with a norm that can be trained.
FROM_SCRATCH = [
    *("model.num_classes=6", "model.backbone.bottom_up.freeze_at=0"),
    *("model.backbone.bottom_up.stages.norm=BN", "model.backbone.bottom_up.stem.norm=BN"),
]


@pytest.fixture(scope="module")
def fcos_teacher(tmp_path_factory) -> str:
    """Weights of the zoo's FCOS R-50 for six classes, untrained."""
    lazy = load_lazy("COCO-Detection/fcos_R_50_FPN_1x.py", ["model.num_classes=6"], "key", "opts")
    path = tmp_path_factory.mktemp("fcos") / "teacher.pth"
    torch.save({"model": build_lazy(lazy, "key", "name").state_dict()}, path)
    return str(path)


@pytest.fixture
def fcos_cfg(mgd_cfg, fcos_teacher):
    mgd_cfg.DISTILL.STUDENT_ARCHITECTURE, mgd_cfg.DISTILL.STUDENT_OPTS = FCOS, FROM_SCRATCH
    mgd_cfg.DISTILL.TEACHER.CONFIG_FILE = "COCO-Detection/fcos_R_50_FPN_1x.py"
    mgd_cfg.DISTILL.TEACHER.WEIGHTS = fcos_teacher
    mgd_cfg.DISTILL.TEACHER.OPTS = ["model.num_classes=6"]
    return mgd_cfg


def test_what_a_config_says_of_its_model():
    lazy = load_lazy(FCOS, ["model.num_classes=7"], "key", "opts")
    assert (image_format(lazy), num_classes(lazy)) == ("RGB", 7)
    zoo = load_lazy("COCO-Detection/fcos_R_50_FPN_1x.py", [], "key", "opts")
    assert (image_format(zoo), num_classes(zoo)) == ("BGR", 80)
    rcnn = load_lazy("new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py", [], "key", "opts")
    assert num_classes(rcnn) == 80


@pytest.mark.parametrize(
    ("content", "overrides", "match"),
    [
        (None, [], r"key = .*gone\.py'.*neither a file nor a model-zoo name"),
        ("model = (", [], r"key = .*cannot be read \(SyntaxError"),
        ("raise OSError('no')", [], r"key = .*cannot be read \(OSError: no"),
        ("student = 1", [], r"key = .*has no `model`"),
        ("model = {'a': 1}", ["model.b.c"], r"opts = \['model\.b\.c'\].*key=value"),
    ],
)
def test_configs_that_cannot_be_read(content, overrides, match, tmp_path):
    path = tmp_path / ("gone.py" if content is None else "config.py")
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=match):
        load_lazy(str(path), overrides, "key", "opts")


def test_a_model_that_cannot_be_built_is_an_error_with_detectron2s_reason():
    lazy = load_lazy(FCOS, ["model.backbone.bottom_up.stages.depth=17"], "key", "opts")
    with pytest.raises(ConfigError, match=r"key = 'name': Detectron2 cannot build its model"):
        build_lazy(lazy, "key", "name")


def test_the_students_format_must_be_the_configs(fcos_cfg):
    fcos_cfg.INPUT.FORMAT = "BGR"
    with pytest.raises(ConfigError, match=r"INPUT\.FORMAT = 'BGR'.*takes 'RGB'"):
        build_model(fcos_cfg)


def test_fcos_is_distilled_evaluated_and_loaded_by_stock_detectron2(fcos_cfg, tmp_path):
    fcos_cfg.DISTILL.METHODS, fcos_cfg.DISTILL.INHERIT = ["mgd", "logits"], ["head"]
    fcos_cfg.SOLVER.MAX_ITER = 2
    (tmp_path / "run.yaml").write_text(fcos_cfg.dump())
    train = [ROOT / "tools/train_net.py", "--config-file", tmp_path / "run.yaml", "--num-gpus", 0]
    output = run_tool(*train).stdout
    assert "loss_logits_ctr" in output
    run = fcos_cfg.OUTPUT_DIR
    assert {"model_final.pth", "student_config.yaml"} <= set(os.listdir(run))
    assert "copypaste: AP" in run_tool(*train, "--eval-only", "--resume").stdout

    student = instantiate(LazyConfig.load(f"{run}/student_config.yaml").model)
    saved = torch.load(f"{run}/model_final.pth", weights_only=True)
    student.load_state_dict(saved["model"], strict=True)
    assert type(student).__name__ == "FCOS"

    # The run is a teacher itself.
    fcos_cfg.DISTILL.TEACHER.CONFIG_FILE = f"{run}/config.yaml"
    fcos_cfg.DISTILL.TEACHER.WEIGHTS, fcos_cfg.DISTILL.TEACHER.OPTS = f"{run}/model_final.pth", []
    teacher = build_model(fcos_cfg).teacher_spec.load(torch.device("cpu"))
    assert type(teacher.model).__name__ == "FCOS"
    assert teacher.input_format == "RGB"


def test_other_classes_than_the_data_are_refused(fcos_cfg, tmp_path):
    fcos_cfg.DISTILL.STUDENT_OPTS = FROM_SCRATCH[1:]
    (tmp_path / "run.yaml").write_text(fcos_cfg.dump())
    train = [ROOT / "tools/train_net.py", "--config-file", tmp_path / "run.yaml", "--num-gpus", 0]
    result = run_tool(*train, check=False)
    assert result.returncode == 2
    assert "DISTILL.STUDENT_OPTS model.num_classes = 80" in result.stderr
    assert """Set DISTILL.STUDENT_OPTS '["model.num_classes=6"]'""" in result.stderr
    assert "Traceback" not in result.stderr
