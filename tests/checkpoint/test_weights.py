"""Weights from torchvision's own files, load reports, and files that are none."""

from __future__ import annotations

import logging

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch.nn import functional as F

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.checkpoint.torchvision_weights import convert_torchvision_resnet
from mgd_det.config import student_config
from mgd_det.errors import ConfigError
from mgd_det.modeling.taps import capture


def torchvision_resnet(depth: int) -> torch.nn.Module:
    """torchvision's own ResNet with weights as after training: no batch norm is an identity."""
    torch.manual_seed(depth)
    model = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.0)
            module.bias.data.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    return model.eval()


@pytest.fixture(params=[18, 50])
def depth(request):
    return request.param


@pytest.fixture
def torchvision_file(depth, tmp_path):
    model = torchvision_resnet(depth)
    path = tmp_path / f"resnet{depth}.pth"
    torch.save(model.state_dict(), path)
    return model, path


@pytest.fixture
def detector(student_cfg, depth):
    student_cfg.MODEL.RESNETS.DEPTH = depth
    student_cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    return build_model(student_config(student_cfg)).eval()


def torchvision_stages(model, pixels):
    x = model.maxpool(F.relu(model.bn1(model.conv1(pixels))))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
        yield x


@pytest.mark.parametrize("load", ["stock checkpointer, torchvision://", "ours, bare file"])
def test_features_equal_torchvisions_own(load, torchvision_file, detector, images):
    """The same RGB image through both libraries, each with its own normalisation code."""
    model, path = torchvision_file
    if load.startswith("stock"):
        DetectionCheckpointer(detector).load(f"torchvision://{path}")
    else:
        ReportingCheckpointer(detector).load(str(path))
    image = images[0]["image"]
    normalise = torchvision.transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    expected = list(torchvision_stages(model, normalise(image / 255)[None]))
    names = ["res2", "res3", "res4", "res5"]
    with torch.no_grad(), capture(detector.backbone, names) as features:
        detector.backbone(detector.preprocess_image([{"image": image}]).tensor)
    for name, stage in zip(names, expected):
        assert torch.allclose(F.relu(features[name]), stage, rtol=1e-4, atol=1e-4)


def test_conversion_by_name():
    state = {
        "conv1.weight": 1,
        "bn1.running_mean": 2,
        "layer1.0.bn2.bias": 3,
        "layer4.1.conv3.weight": 4,
        "layer2.0.downsample.0.weight": 5,
        "layer2.0.downsample.1.running_var": 6,
        "layer2.0.bn1.num_batches_tracked": 7,
        "fc.weight": 8,
    }
    assert convert_torchvision_resnet(state) == {
        "stem.conv1.weight": 1,
        "stem.conv1.norm.running_mean": 2,
        "res2.0.conv2.norm.bias": 3,
        "res5.1.conv3.weight": 4,
        "res3.0.shortcut.weight": 5,
        "res3.0.shortcut.norm.running_var": 6,
    }


def test_a_name_that_torchvision_does_not_know(detector):
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS = 'torchvision://resnet17'.*torchvision"):
        ReportingCheckpointer(detector).load("torchvision://resnet17")


def test_report_counts_what_matched(student_cfg, tmp_path, caplog):
    model = build_model(student_config(student_cfg))
    state = model.state_dict()
    total = sum(not name.endswith("num_batches_tracked") for name in state)
    del state["head.cls_score.bias"]
    state["backbone.fpn_lateral3.weight"] = torch.zeros(1, 2, 3)
    state["extra.thing"] = torch.zeros(1)
    torch.save({"model": state}, tmp_path / "partial.pth")
    checkpointer = ReportingCheckpointer(model, role="student")
    with caplog.at_level(logging.INFO, "detectron2"):
        checkpointer.load(str(tmp_path / "partial.pth"))
    report = checkpointer.report
    assert report.loaded == total - 2
    assert report.missing == ["backbone.fpn_lateral3.weight", "head.cls_score.bias"]
    assert report.unused == ["extra.thing"]
    assert report.mismatched == ["backbone.fpn_lateral3.weight (1, 2, 3) vs (16, 128, 1, 1)"]
    assert f"student: {total - 2} of {total} tensors loaded" in caplog.text
    assert "head.cls_score.* (1)" in caplog.text


@pytest.mark.parametrize(
    "content",
    [b"", b"<html><body>404</body></html>", b"PK\x03\x04 torn"],
    ids=["empty", "a web page", "a torn archive"],
)
@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
def test_files_that_are_no_weights(content, suffix, student_cfg, tmp_path):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    model = build_model(student_config(student_cfg))
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS = .*not a whole weight file.*fetch"):
        ReportingCheckpointer(model).load(str(path))


def test_a_truncated_file(student_cfg, tmp_path):
    model = build_model(student_config(student_cfg))
    path = tmp_path / "model.pth"
    torch.save({"model": model.state_dict()}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match="not a whole weight file"):
        ReportingCheckpointer(model).load(str(path))


@pytest.mark.parametrize("name", ["missing.pth", "."])
def test_no_file(name, student_cfg, tmp_path):
    model = build_model(student_config(student_cfg))
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS"):
        ReportingCheckpointer(model).load(str(tmp_path / name))


def test_a_backbone_that_fits_in_part_is_refused_or_named(student_cfg, tmp_path, caplog):
    """R-50's weights in an R-18 fit here and there; one layer that is new does not matter."""
    stock = student_config(student_cfg)
    stock.MODEL.RESNETS.DEPTH, stock.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 256
    state = build_model(stock).state_dict()
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.bottom_up.")}
    torch.save({"model": backbone}, tmp_path / "r50.pth")
    stock.MODEL.RESNETS.DEPTH, stock.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    student = build_model(stock)
    with pytest.raises(ConfigError, match=r"fits \d+ of 100 tensors of the student's backbone, so it is of"):
        ReportingCheckpointer(student).load(str(tmp_path / "r50.pth"))

    state = dict(student.state_dict())
    lacking = "backbone.bottom_up.res5.1.conv2.weight"
    del state[lacking]
    torch.save({"model": state}, tmp_path / "nearly.pth")
    ReportingCheckpointer(student).load(str(tmp_path / "nearly.pth"))
    assert any(message.endswith(f"keep their initial values: {lacking}") for message in caplog.messages)


def test_one_of_several_checkpoints_that_nothing_names_is_not_chosen(tmp_path):
    checkpointer = ReportingCheckpointer(torch.nn.Linear(1, 1), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    (tmp_path / "model_0000004.pth").touch()
    (tmp_path / "model_best.pth").touch()
    assert checkpointer.has_checkpoint()
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000004.pth")
    (tmp_path / "model_final.pth").touch()
    assert not checkpointer.has_checkpoint()
