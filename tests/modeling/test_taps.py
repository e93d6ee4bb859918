"""Taps on real Detectron2 networks."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import nn
from torch.nn import functional as F

from mgd_det.modeling.tapped import TappedDetector
from mgd_det.modeling.taps import UnknownTap, capture, evaluating, find_tap

BLOCKS = {
    "basic, identity": lambda: BasicBlock(8, 8),
    "basic, projection": lambda: BasicBlock(4, 8, stride=2),
    "bottleneck, identity": lambda: BottleneckBlock(8, 8, bottleneck_channels=4),
    "bottleneck, projection": lambda: BottleneckBlock(4, 8, bottleneck_channels=4, stride=2),
}


def one_block_resnet(block) -> ResNet:
    stem = BasicStem(3, block.in_channels)
    return ResNet(stem, [[block]], out_features=["res2"]).double()


@pytest.mark.parametrize("kind", BLOCKS)
def test_residual_tap_is_the_sum_before_the_relu(kind):
    torch.manual_seed(0)
    block = BLOCKS[kind]()
    backbone = one_block_resnet(block)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)

    with capture(backbone, ["res2"]) as features:
        output = backbone(x)["res2"]

    tap = features["res2"]
    assert tap.min() < 0
    assert torch.equal(F.relu(tap), output)
    # The same sum formed by hand, from the block's own parts.
    block_input = backbone.stem(x)
    branch = block_input
    convs = [block.conv1, block.conv2, *([block.conv3] if hasattr(block, "conv3") else [])]
    for conv in convs[:-1]:
        branch = F.relu(conv(branch))
    shortcut = block_input if block.shortcut is None else block.shortcut(block_input)
    assert torch.equal(tap, convs[-1](branch) + shortcut)


@pytest.mark.parametrize("kind", BLOCKS)
def test_gradients_flow_through_the_tap_into_the_block(kind):
    torch.manual_seed(0)
    backbone = one_block_resnet(BLOCKS[kind]())
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    weight = backbone.res2[0].conv1.weight

    def loss() -> torch.Tensor:
        with capture(backbone, ["res2"]) as features:
            backbone(x)
        return features["res2"].square().sum()

    (gradient,) = torch.autograd.grad(loss(), weight)
    step = torch.zeros_like(weight.data)
    step[0, 0, 0, 0] = 1e-6
    weight.data += step
    above = loss().item()
    weight.data -= 2 * step
    below = loss().item()
    assert gradient[0, 0, 0, 0].item() == pytest.approx((above - below) / 2e-6, rel=1e-5)


@pytest.fixture
def backbone(student_cfg):
    return build_backbone(student_cfg)


def test_all_stages_and_fpn_levels_of_a_retinanet(backbone):
    names = ["res2", "res3", "res4", "res5", "p3", "p7"]
    with capture(backbone, names) as features:
        outputs = backbone(torch.randn(1, 3, 128, 128))
    assert list(features) == names
    assert features["p3"] is outputs["p3"]
    assert [f.shape[1] for f in features.values()] == [64, 128, 256, 512, 16, 16]


def test_taps_after_the_relu_and_by_path(backbone):
    """A module's output as it was when it was returned, though the block goes on to change it in place."""
    names = ["res3", "res3_relu", "bottom_up.res3.1.conv2", "bottom_up.res4.0"]
    x = torch.randn(1, 3, 64, 64)
    backbone.eval()
    with torch.no_grad(), capture(backbone, names) as features:
        backbone(x)
    assert torch.equal(features["res3_relu"], F.relu(features["res3"]))
    bottom_up = backbone.bottom_up
    with torch.no_grad():
        inside = bottom_up.res3[0](bottom_up.res2(bottom_up.stem(x)))
        conv2 = bottom_up.res3[1].conv2(F.relu(bottom_up.res3[1].conv1(inside)))
        assert torch.allclose(features["bottom_up.res3.1.conv2"], conv2, atol=1e-5)
        assert torch.allclose(
            features["bottom_up.res4.0"], bottom_up.res4[0](bottom_up.res3[1](inside)), atol=1e-5
        )


class Pyramid(Backbone):
    """One that holds its network under another name than `bottom_up`, as Detectron2's of ViTs."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 2, 1)

    def forward(self, x):
        return {"p2": self.net(x), "p3": self.net(x)[:, :, ::2, ::2]}

    def output_shape(self):
        return {"p2": ShapeSpec(2, stride=1), "p3": ShapeSpec(2, stride=2)}


def test_outputs_of_a_pyramid_of_another_kind():
    pyramid = Pyramid()
    with capture(pyramid, ["p3", "net"]) as features:
        outputs = pyramid(torch.ones(1, 3, 4, 4))
    assert features["p3"] is outputs["p3"]
    assert torch.equal(features["net"], outputs["p2"])
    with pytest.raises(UnknownTap, match=r"it has the taps \['p2', 'p3'\], and its modules' paths"):
        find_tap(pyramid, "p4")


def test_no_hook_stays_behind(backbone):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())

    before = hooks()
    with capture(backbone, ["res3", "p3"]):
        assert hooks() > before
    assert hooks() == before
    with pytest.raises(RuntimeError), capture(backbone, ["res3"]):
        backbone(torch.zeros(1, 5, 64, 64))  # five channels where three are expected
    assert hooks() == before


def test_nothing_is_kept_alive_between_steps(backbone):
    with capture(backbone, ["res3", "res5"]) as features:
        backbone(torch.randn(1, 3, 64, 64))
    kept = [weakref.ref(tensor) for tensor in features.values()]
    del features
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_stop_leaves_the_rest_of_the_network_alone(backbone):
    run = []
    for name in ("res4", "res5"):
        getattr(backbone.bottom_up, name).register_forward_hook(lambda m, a, o, n=name: run.append(n))
    backbone.fpn_lateral5.register_forward_hook(lambda *args: run.append("fpn"))
    with capture(backbone, ["res3", "res4"], stop=True) as features:
        backbone(torch.randn(1, 3, 64, 64))
    assert set(features) == {"res3", "res4"}
    assert run == []


def test_an_unknown_tap_is_answered_with_those_there_are(backbone):
    with pytest.raises(UnknownTap, match=r"res2.*res5.*p3.*p7"):
        find_tap(backbone, "res9")


def test_inspection_reports_channels_strides_and_trainability(student_cfg):
    student_cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build_student(student_cfg)
    infos = TappedDetector(model).inspect(["res2", "res3", "res5", "p7"])
    assert [i.channels for i in infos.values()] == [64, 128, 512, 16]
    assert [i.stride for i in infos.values()] == [4, 8, 32, 128]
    assert [i.trainable for i in infos.values()] == [False, True, True, True]


def test_inspection_changes_nothing(student_cfg):
    model = build_student(student_cfg)
    model.backbone.bottom_up.res4.eval()
    modes = [m.training for m in model.modules()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    random_state = torch.get_rng_state()
    TappedDetector(model).inspect(["res3", "p3"])
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_evaluating_gives_every_module_its_mode_back_after_an_error():
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.Sequential(torch.nn.Dropout()))
    model[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not any(m.training for m in model.modules())
        _ = 1 / 0
    assert [m.training for m in model.modules()] == [True, True, False, False]


class Merging(nn.Linear):
    """Adds to its weight in eval mode, and takes that off again in training mode, as LoRA does."""

    merged = False

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    def train(self, mode: bool = True):
        if self.merged is mode:
            self.weight.data += -1 if mode else 1
            self.merged = not mode
        return super().train(mode)


def test_evaluating_undoes_what_eval_mode_does_to_a_module():
    model = nn.Sequential(Merging(2, 2), nn.Sequential(Merging(2, 2)))
    model[1].eval()
    with evaluating(model):
        assert (model[0].weight == 2).all() and (model[1][0].weight == 2).all()
    assert (model[0].weight == 1).all() and (model[1][0].weight == 2).all()
    assert [m.training for m in model.modules()] == [True, True, False, False]


class Scaled(BasicBlock):
    """Halves its branch before it adds it, as squeeze and excitation or LayerScale do."""

    def forward(self, x):
        return F.relu(self.conv2(F.relu_(self.conv1(x))) / 2 + x)


def test_the_sum_of_a_block_that_changes_its_branch_is_no_tap():
    class Detector(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.backbone = one_block_resnet(block).float()

        def forward(self, batched_inputs):
            return self.backbone(torch.stack([x["image"] + 1.0 for x in batched_inputs]))

    with pytest.raises(UnknownTap, match=r"at 'res2', its Scaled does more than add .* take 'res2_relu'"):
        TappedDetector(Detector(Scaled(8, 8))).inspect(["res2"])
    assert TappedDetector(Detector(Scaled(8, 8))).inspect(["res2_relu"])["res2_relu"].channels == 8
    assert TappedDetector(Detector(BasicBlock(8, 8))).inspect(["res2"])["res2"].channels == 8


def test_an_empty_sequence_in_a_backbone_is_no_stage():
    backbone = one_block_resnet(BasicBlock(8, 8))
    backbone.after = nn.Sequential()
    assert find_tap(backbone, "res2").hooked


def test_a_module_without_feature_maps_is_no_tap(student_cfg):
    with pytest.raises(UnknownTap, match=r"'bottom_up' gives no \(N, C, H, W\) features"):
        TappedDetector(build_student(student_cfg)).inspect(["bottom_up"])


def test_batch_norm_parameters_are_reported_only_where_they_are_moments(student_cfg):
    model = build_student(student_cfg)
    info = TappedDetector(model).inspect(["res3", "p3"])
    norm = model.backbone.bottom_up.res3[-1].conv2.norm
    assert torch.equal(info["res3"].batch_norm[0], norm.weight)
    assert torch.equal(info["res3"].batch_norm[1], norm.bias)
    assert info["p3"].batch_norm is None

    frozen = FrozenBatchNorm2d(128)  # as loaded from Caffe2: statistics folded in
    frozen.weight.uniform_()
    model.backbone.bottom_up.res3[-1].conv2.norm = frozen
    assert TappedDetector(model).inspect(["res3"])["res3"].batch_norm is None
    frozen.running_mean.uniform_()  # as loaded from torchvision
    assert TappedDetector(model).inspect(["res3"])["res3"].batch_norm is not None

    model.backbone.bottom_up.res3[-1].conv2.norm = torch.nn.GroupNorm(4, 128)
    assert TappedDetector(model).inspect(["res3"])["res3"].batch_norm is None


def build_student(cfg):
    from detectron2.modeling import build_model

    from mgd_det.config import student_config

    return build_model(student_config(cfg))
