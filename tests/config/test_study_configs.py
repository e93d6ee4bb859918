"""The configs of the studies on real images: what they share, and that the converted weights fit them."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import CfgNode
from helpers.commands import ROOT

from mgd_det.config import load_config
from mgd_det.modeling.build import build_student

STUDIES = ("bccd", "animal_pose")
NETWORKS = ("teacher", "student_r18", "student_mobilenetv2")


def config(study: str, network: str) -> CfgNode:
    return load_config(str(ROOT / f"configs/studies/{study}/{network}.yaml"), device="cpu")


@pytest.mark.parametrize("study", STUDIES)
def test_students_and_teacher_agree_about_the_data(study):
    """Also about FPN and head, which students may inherit."""
    cfgs = [config(study, network) for network in NETWORKS]
    for cfg in cfgs:
        assert list(cfg.DATASETS.TRAIN) == [f"{study}_train"]
        assert cfg.OUTPUT_DIR.startswith(f"output/studies/{study}/")
        for node in ("DATASETS", "MODEL.RETINANET", "MODEL.FPN", "MODEL.ANCHOR_GENERATOR"):
            of_teacher, of_cfg = cfgs[0], cfg
            for part in node.split("."):
                of_teacher, of_cfg = of_teacher[part], of_cfg[part]
            assert of_cfg == of_teacher, node
    assert len({cfg.OUTPUT_DIR for cfg in cfgs}) == len(NETWORKS)


@pytest.mark.parametrize("study", STUDIES)
def test_the_student_with_few_labels_has_the_teacher_and_the_network_of_its_study(study):
    few, alone, teacher = (
        config(study, name) for name in ("student_few_labels", "student_mobilenetv2", "teacher")
    )
    alone.MODEL.BACKBONE.FREEZE_AT = {"bccd": 0, "animal_pose": 2}[study]
    assert few.MODEL == alone.MODEL
    assert few.INPUT == alone.INPUT
    files = [few.DISTILL.TEACHER.CONFIG_FILE, few.DISTILL.TEACHER.WEIGHTS]
    assert files == [f"configs/studies/{study}/teacher.{ending}" for ending in ("yaml", "pth")]
    weights = torch.load(ROOT / files[1], weights_only=True)["model"]
    assert weights.keys() == build_student(teacher).state_dict().keys()
    registered = {name: images for name, _, images in few.DATASETS.REGISTER}
    assert registered.keys() >= {*few.DATASETS.TRAIN, *few.DATASETS.TEST, f"{study}_rest", f"{study}_test"}
    assert registered[few.DATASETS.TRAIN[0]] == f"datasets/{study}/train"


def test_the_teacher_has_the_layers_of_half_resnet50():
    """53 convolutions, each with a norm of four tensors; tools/convert_backbone.py names these widths."""
    bottom_up = build_student(config("bccd", "teacher")).backbone.bottom_up
    shapes = {name: tuple(tensor.shape) for name, tensor in bottom_up.state_dict().items()}
    assert len(shapes) == 53 * 5
    assert shapes["stem.conv1.weight"] == (64, 3, 7, 7)
    assert shapes["res2.0.conv1.weight"] == (32, 64, 1, 1)
    assert shapes["res5.2.conv3.weight"] == (1024, 256, 1, 1)
    assert bottom_up.res3[0].conv1.stride == (2, 2)


def test_frozen_parts_are_those_with_imagenet_weights():
    teacher, r18, mobilenet = (build_student(config("bccd", network)).backbone for network in NETWORKS)
    frozen = [name for name, p in teacher.bottom_up.named_parameters() if not p.requires_grad]
    assert frozen == [
        name for name, _ in teacher.bottom_up.named_parameters() if name[:4] in ("stem", "res2")
    ]
    assert all(p.requires_grad for p in r18.parameters())
    assert all(p.requires_grad for p in mobilenet.bottom_up.parameters() if p.dim() == 4)


@pytest.mark.parametrize("name", ["shapes/student", "bccd/student_r18", "animal_pose/student_r18"])
def test_bfloat16_gives_the_gradients_of_float32_at_the_smallest_images(name):
    """On a map of one pixel, as images up to 64 px have, torch's kernel for a stride of two is wrong."""
    cfg = load_config(str(ROOT / f"configs/studies/{name}.yaml"), device="cpu")
    student = build_student(cfg)
    side = 32 * math.ceil(min(cfg.INPUT.MIN_SIZE_TRAIN) / 32)
    inputs: dict[torch.nn.Conv2d, list[torch.Tensor]] = {}
    for module in student.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda conv, args, _: inputs.setdefault(conv, []).append(args[0]))
    with torch.no_grad():
        features = student.backbone(torch.rand(cfg.SOLVER.IMS_PER_BATCH, 3, side, side))
        student.head([features[level] for level in student.head_in_features])
    for conv, tensors in inputs.items():
        smallest = min(tensors, key=torch.Tensor.numel)
        exact, rounded = (weight_gradient(conv, smallest, half=half) for half in (False, True))
        assert (rounded - exact).norm() < 0.01 * exact.norm(), conv


def weight_gradient(conv: torch.nn.Conv2d, features: torch.Tensor, *, half: bool) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = torch.nn.functional.conv2d(
            features, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups
        )
    pull = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad(y, conv.weight, pull.to(y.dtype))[0]
