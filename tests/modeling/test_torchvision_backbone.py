"""Backbones made from torchvision's networks: their stages, what is frozen, their weights, their taps."""

from __future__ import annotations

import copy
import importlib.util
import pickle

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyCall, instantiate
from detectron2.modeling import FPN, build_backbone, build_model
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.solver.build import get_default_optimizer_params
from torch import nn
from torch.nn import functional as F

from mgd_det.checkpoint.checkpointer import ReportingCheckpointer
from mgd_det.config import student_config
from mgd_det.errors import ConfigError
from mgd_det.modeling.tapped import TappedDetector
from mgd_det.modeling.taps import capture, evaluating
from mgd_det.modeling.torchvision_backbone import FeatureMap, TorchvisionBackbone, find_stages

STAGES = ["res2", "res3", "res4", "res5"]
WIDTHS = {  # of res2 to res5
    "convnext_tiny": [96, 192, 384, 768],
    "efficientnet_b0": [24, 40, 112, 1280],
    "mnasnet0_5": [16, 24, 48, 1280],
    "mobilenet_v2": [24, 32, 96, 1280],
    "mobilenet_v3_small": [16, 24, 48, 576],
    "regnet_y_400mf": [48, 104, 208, 440],
    "resnet18": [64, 128, 256, 512],
    "shufflenet_v2_x0_5": [24, 48, 96, 1024],
}


@pytest.fixture
def cfg(student_cfg):
    """A config of a RetinaNet with MobileNetV2."""
    student_cfg.MODEL.BACKBONE.NAME = "build_retinanet_torchvision_fpn_backbone"
    student_cfg.MODEL.TORCHVISION.NAME = "mobilenet_v2"
    student_cfg.MODEL.TORCHVISION.NORM = "BN"
    return student_cfg


def backbone_of(name: str, **options) -> TorchvisionBackbone:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name)
    return TorchvisionBackbone(network=network, **{"out_features": STAGES, "norm": "BN", **options})


@pytest.mark.parametrize("name", WIDTHS)
def test_widths_and_sizes_of_the_stages(name):
    backbone = backbone_of(name).eval()
    assert [backbone.output_shape()[stage].channels for stage in STAGES] == WIDTHS[name]
    assert [backbone.output_shape()[stage].stride for stage in STAGES] == [4, 8, 16, 32]
    with torch.no_grad():
        outputs = backbone(torch.randn(2, 3, 64, 96))
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3)]
    assert [tuple(outputs[stage].shape) for stage in STAGES] == [
        (2, width, *size) for width, size in zip(WIDTHS[name], sizes)
    ]


class Branching(nn.Module):
    """A block whose wide inside has the stride of its input, and whose output has twice that."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 9 * channels, 1)
        self.reduce = nn.Conv2d(9 * channels, 2 * channels, 3, stride=2, padding=1)

    def forward(self, x):
        return F.relu(self.reduce(self.expand(x)))


def test_a_stage_ends_before_the_block_in_which_the_next_begins():
    stem = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    network = nn.Sequential(stem, nn.ReLU(), Branching(5), Branching(10), nn.Sequential(Branching(20)))
    assert find_stages(network) == {
        "stem": FeatureMap("1", 2, 5),
        "res2": FeatureMap("2.relu", 4, 10),
        "res3": FeatureMap("3.relu", 8, 20),
        "res4": FeatureMap("4.0.relu", 16, 40),
    }


def test_features_are_those_of_the_network_itself():
    network = torchvision.models.get_model("mobilenet_v2").eval()
    backbone = TorchvisionBackbone(network=network, out_features=STAGES).eval()
    x = torch.randn(1, 3, 70, 101)  # no multiples of the strides
    with torch.no_grad():
        outputs = backbone(x)
        for stage, last in (("res2", 3), ("res3", 6), ("res4", 13), ("res5", 18)):
            assert torch.equal(outputs[stage], network.features[: last + 1](x))


def frozen_parts(backbone: nn.Module, depth: int) -> list[str]:
    """The modules of the network, by the first parts of their names, in which no parameter is trained."""
    trained: dict[str, bool] = {}
    for name, parameter in backbone.network.named_parameters():
        part = ".".join(name.split(".")[:depth])
        trained[part] = trained.get(part, False) or parameter.requires_grad
    return [part for part, is_trained in trained.items() if not is_trained]


@pytest.mark.parametrize(
    ("freeze_at", "modules"),
    [(0, 0), (1, 2), (2, 4), (3, 7), (4, 14), (5, 19)],
)
def test_stages_that_are_frozen(freeze_at, modules):
    frozen = frozen_parts(backbone_of("mobilenet_v2", freeze_at=freeze_at), 2)
    assert frozen == [f"features.{number}" for number in range(modules)]


def small_convnext() -> nn.Module:
    block = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.convnext.ConvNeXt([block(8, 8, 1)] * 3 + [block(8, None, 1)])


def test_a_network_that_begins_with_stride_4_has_no_stem():
    for freeze_at, frozen in ((1, []), (2, ["features.0", "features.1"])):
        backbone = TorchvisionBackbone(network=small_convnext(), out_features=STAGES, freeze_at=freeze_at)
        assert frozen_parts(backbone, 2) == frozen


def test_the_optimizer_finds_the_norms():
    """Detectron2 tells them by their classes, for SOLVER.WEIGHT_DECAY_NORM."""
    backbone = TorchvisionBackbone(network=small_convnext(), out_features=STAGES)
    groups = get_default_optimizer_params(backbone, base_lr=1.0, weight_decay=0.5, weight_decay_norm=0.25)
    found = {p: group["weight_decay"] for group in groups for p in group["params"]}
    norms = [m for m in backbone.modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) == 8  # of the stem, 3 reductions and 4 blocks
    assert {found[m.weight] for m in norms} == {0.25}
    assert list(found.values()).count(0.25) == 16


def test_the_stem_of_a_resnet_is_what_detectron2_freezes():
    assert frozen_parts(backbone_of("resnet18", freeze_at=1), 1) == ["conv1", "bn1"]
    assert frozen_parts(backbone_of("resnet18", freeze_at=3), 1) == ["conv1", "bn1", "layer1", "layer2"]


@pytest.mark.parametrize(("norm", "freeze_at", "moves"), [("BN", 0, 20), ("BN", 2, 15), ("FrozenBN", 0, 0)])
def test_statistics_of_frozen_batch_norms_stay(norm, freeze_at, moves):
    """Also where the whole detector is put into train mode again."""
    backbone = backbone_of("resnet18", norm=norm, freeze_at=freeze_at)
    detector = nn.Sequential(backbone).eval().train()
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    detector(torch.randn(2, 3, 64, 64))
    assert sum(not torch.equal(b, norm.running_mean) for b, norm in zip(before, norms)) == moves
    assert sum(norm.weight.requires_grad for norm in norms) == moves


def test_stochastic_depth_follows_the_mode_of_its_module():
    """Also after a pass in eval mode that gives the modules their modes back one by one."""
    backbone = backbone_of("efficientnet_b0", norm="FrozenBN").train()
    x = torch.randn(2, 3, 64, 64)
    with evaluating(backbone), torch.no_grad():
        first, second = backbone(x)["res5"], backbone(x)["res5"]
    assert torch.equal(first, second)
    for module in backbone.modules():
        if isinstance(module, torchvision.ops.StochasticDepth):
            module.p = 1.0  # every residual branch is dropped
    with torch.no_grad():
        assert not torch.equal(backbone(x)["res5"], first)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_whole_and_its_own(way):
    backbone = backbone_of("mobilenet_v3_small", freeze_at=2).eval()
    copied = way(backbone)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected, found = backbone(x), copied.train().eval()(x)
        assert all(torch.equal(found[stage], expected[stage]) for stage in STAGES)
        copied.network.get_submodule("features.12.0").weight.zero_()
        assert torch.equal(backbone(x)["res5"], expected["res5"])
    assert copied.state_dict().keys() == backbone.state_dict().keys()
    requires = [[p.requires_grad for p in b.parameters()] for b in (backbone, copied)]
    assert requires[0] == requires[1]


def test_builders_put_detectron2s_fpns_on_top(cfg):
    outputs = build_backbone(cfg).output_shape()
    assert {name: shape.stride for name, shape in outputs.items()} == {
        "p3": 8, "p4": 16, "p5": 32, "p6": 64, "p7": 128
    }  # fmt: skip
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.IN_FEATURES = "build_torchvision_fpn_backbone", STAGES
    assert list(build_backbone(cfg).output_shape()) == ["p2", "p3", "p4", "p5", "p6"]
    cfg.MODEL.BACKBONE.NAME = "build_torchvision_backbone"
    cfg.MODEL.TORCHVISION.OUT_FEATURES = ["res4"]
    backbone = build_backbone(cfg)
    assert {name: tuple(shape) for name, shape in backbone.output_shape().items()} == {
        "res4": (96, None, None, 16)
    }
    assert "network.features.14.conv.0.0.weight" not in backbone.state_dict()  # behind res4


def test_a_lazy_config_takes_any_network():
    lazy = LazyCall(FPN)(
        bottom_up=LazyCall(TorchvisionBackbone)(
            network=LazyCall(torchvision.models.mobilenet_v2)(width_mult=0.5), out_features=STAGES
        ),
        in_features=["res3", "res4", "res5"],
        out_channels=16,
        top_block=LazyCall(LastLevelP6P7)(in_channels=16, out_channels=16, in_feature="p5"),
    )
    backbone = instantiate(lazy)
    outputs = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(f.shape[1:]) for name, f in outputs.items()} == {
        "p3": (16, 8, 12), "p4": (16, 4, 6), "p5": (16, 2, 3), "p6": (16, 1, 2), "p7": (16, 1, 1)
    }  # fmt: skip


def test_stages_are_taps(cfg):
    detector = build_model(student_config(cfg))
    infos = TappedDetector(detector).inspect(["res2", "res4", "p4"])
    assert [info.channels for info in infos.values()] == [24, 96, 16]
    assert [info.stride for info in infos.values()] == [4, 16, 16]
    with capture(detector.backbone, ["res3"]) as features:
        detector.backbone(torch.randn(1, 3, 64, 64))
    features["res3"].sum().backward()
    assert detector.backbone.bottom_up.network.get_submodule("features.0.0").weight.grad.abs().sum() > 0


def save_weights(name: str, path) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    state = torchvision.models.get_model(name).state_dict()
    torch.save(state, path)
    return state


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
@pytest.mark.parametrize("prefix", ["", "torchvision://"])
def test_torchvisions_own_weight_files_are_loaded(cfg, name, prefix, tmp_path):
    state = save_weights(name, tmp_path / "weights.pth")
    cfg.MODEL.TORCHVISION.NAME = name
    detector = build_model(student_config(cfg))
    checkpointer = ReportingCheckpointer(detector)
    checkpointer.load(f"{prefix}{tmp_path / 'weights.pth'}")
    loaded = detector.backbone.bottom_up.network.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items() if "num_batches" not in key)
    classifier = "classifier.1" if name == "mobilenet_v2" else "fc"
    assert sorted(checkpointer.report.unused) == [f"{classifier}.bias", f"{classifier}.weight"]
    assert not [key for key in checkpointer.report.missing if ".bottom_up." in key]


def test_the_stock_checkpointer_loads_torchvisions_files(cfg, tmp_path):
    state = save_weights("mobilenet_v2", tmp_path / "weights.pth")
    detector = build_model(student_config(cfg))
    DetectionCheckpointer(detector).load(f"torchvision://{tmp_path / 'weights.pth'}")
    last = detector.backbone.bottom_up.network.get_submodule("features.18.0")
    assert torch.equal(last.weight, state["features.18.0.weight"])


def test_the_students_config_builds_it_beside_our_keys(cfg):
    config = student_config(cfg)
    assert config.MODEL.TORCHVISION == cfg.MODEL.TORCHVISION
    assert "DISTILL" not in config
    cfg.MODEL.TORCHVISION.NAME = ""
    assert "TORCHVISION" not in student_config(cfg).MODEL


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (["NAME", "mobilenet_v22"], r"NAME = 'mobilenet_v22': no classification network .*mobilenet_v2"),
        (["NAME", ""], r"NAME = '': no classification network"),
        (["NAME", "fasterrcnn_resnet50_fpn"], r"no classification network has this name"),
        (["NAME", "vit_b_16"], r"feature extraction cannot trace VisionTransformer"),
        (["NAME", "alexnet"], r"AlexNet has no stages \['res2', 'res3', 'res4', 'res5'\]; found were \[\]"),
        (["NAME", "resnet18", "NORM", "GN"], r"norm 'GN' is not one of \['FrozenBN', 'BN'\]"),
        (["NAME", "resnet18", "OUT_FEATURES", ["stem"]], r"ResNet has no stages \['stem'\]"),
    ],
)
def test_bad_values_are_refused(cfg, options, match):
    pairs = zip(options[::2], options[1::2])
    cfg.merge_from_list([x for key, value in pairs for x in (f"MODEL.TORCHVISION.{key}", value)])
    with pytest.raises(ConfigError, match=rf"^MODEL\.TORCHVISION\.NAME = .*{match}|{match}"):
        build_backbone(cfg)


def test_images_of_other_than_three_channels_are_refused(cfg):
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0], [50.0]
    with pytest.raises(ConfigError, match=r"MODEL\.PIXEL_MEAN = \[100\.0\]: images of 1 channels"):
        build_backbone(cfg)


def test_networks_of_timm(cfg):
    """Or, without timm, what is needed for them."""
    cfg.MODEL.TORCHVISION.NAME = "timm/mobilenetv3_small_050"
    if importlib.util.find_spec("timm") is None:
        with pytest.raises(ConfigError, match=r"'timm/mobilenetv3_small_050': .*timm is not installed"):
            build_backbone(cfg)
        return
    shapes = build_backbone(cfg).bottom_up.output_shape()
    assert [shapes[stage].channels for stage in STAGES] == [8, 16, 24, 288]
