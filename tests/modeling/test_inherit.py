"""A student that starts with parts of its teacher: by hand on small modules, and in real runs."""

from __future__ import annotations

import logging

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from mgd_det import RematchHook, Trainer, register_datasets
from mgd_det.errors import ConfigError
from mgd_det.modeling.inherit import inherit


def network(bottom_up: int, classes: int) -> nn.Module:
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.bottom_up = nn.Linear(2, bottom_up)
    model.backbone.fpn_lateral = nn.Linear(bottom_up, 4)
    model.backbone.fpn_output = nn.Linear(4, 4)
    model.head = nn.ModuleDict({"tower": nn.Linear(4, 4), "score": nn.Linear(4, classes)})
    return model


def copied(student: nn.Module, teacher: nn.Module) -> set[str]:
    theirs = teacher.state_dict()
    return {
        n for n, t in student.state_dict().items() if t.shape == theirs[n].shape and torch.equal(t, theirs[n])
    }


def test_parts_are_copied_where_shapes_agree():
    student, teacher = network(2, 6), network(3, 6)
    found = inherit(student, teacher, ["fpn", "head.tower"])
    fpn = ["backbone.fpn_lateral.bias", "backbone.fpn_output.weight", "backbone.fpn_output.bias"]
    tower = ["head.tower.weight", "head.tower.bias"]
    assert found == {"fpn": fpn, "head.tower": tower}
    assert copied(student, teacher) == {*fpn, *tower}


def test_a_head_for_other_classes_keeps_its_own_classifier():
    student, teacher = network(2, 5), network(2, 6)
    assert inherit(student, teacher, ["head"]) == {"head": ["head.tower.weight", "head.tower.bias"]}
    assert student.head["score"].weight.shape == (5, 4)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        (
            ["fpn", "neck"],
            r"DISTILL\.INHERIT = \['fpn', 'neck'\]: the student has no module 'neck'.*'backbone', 'head'",
        ),
        (["backbone.bottom_up"], r"no tensor of 'backbone.bottom_up'.*\(2, 2\), the teacher's .*\(3, 2\)"),
    ],
)
def test_what_cannot_be_inherited_is_an_error_and_nothing_is_copied(parts, match):
    student, teacher = network(2, 6), network(3, 6)
    before = copied(student, teacher)
    with pytest.raises(ConfigError, match=match):
        inherit(student, teacher, parts)
    assert copied(student, teacher) == before


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (["NUM_CONVS", 2], "'head.cls_subnet' has other layers in the two networks: the student alone has"),
        (["NORM", ""], "the teacher alone has head.cls_subnet.1"),
    ],
)
def test_a_head_with_other_layers_is_refused(opts, match, mgd_cfg):
    """Its layers are named by their places, and the last one learnt to follow all of the others."""
    mgd_cfg.DISTILL.METHODS, mgd_cfg.DISTILL.INHERIT = [], ["head"]
    mgd_cfg.MODEL.RETINANET.merge_from_list(opts)
    model = build_model(mgd_cfg)
    with pytest.raises(ConfigError, match=match):
        model.inherit()


def test_a_backbone_without_an_fpn_has_none_to_give():
    student, teacher = network(2, 6), network(2, 6)
    teacher.backbone = nn.Sequential(nn.Linear(2, 4))
    with pytest.raises(ConfigError, match="the teacher has no module 'fpn'"):
        inherit(student, teacher, ["fpn"])


def test_the_log_tells_other_shapes_from_what_only_one_network_has(caplog):
    student, teacher = network(2, 5), network(2, 6)
    student.head["mine"], teacher.head["yours"] = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with caplog.at_level(logging.INFO, "detectron2"):
        inherit(student, teacher, ["head"])
    assert caplog.messages == [
        "inherited from the teacher: 2 of 5 tensors of 'head'; not, since the shapes differ: "
        "head.score.weight (5, 4), head.score.bias (5,); not, since the teacher lacks them: "
        "head.mine.weight; the teacher's alone: head.yours.weight"
    ]


def test_a_real_student_takes_over_fpn_and_head(mgd_cfg):
    """R-50 to R-18: everything but what takes the bottom-up network's outputs as its input."""
    mgd_cfg.DISTILL.METHODS, mgd_cfg.DISTILL.INHERIT = [], ["fpn", "head"]
    model = build_model(mgd_cfg)
    model.inherit()
    teacher = model.teacher_spec.load(torch.device("cpu")).model.state_dict()
    left = {
        n
        for n, t in model.state_dict().items()
        if not n.startswith("backbone.bottom_up") and not torch.equal(t, teacher[n])
    }
    laterals = {f"backbone.fpn_lateral{i}.weight" for i in (3, 4, 5)}
    assert left == {*laterals, "backbone.top_block.p6.weight"}
    assert model.teacher is None


def test_it_happens_once_at_the_start_of_a_run_also_without_a_method(mgd_cfg):
    register_datasets(mgd_cfg)
    mgd_cfg.DATASETS.TEST = ()
    mgd_cfg.DISTILL.METHODS, mgd_cfg.DISTILL.INHERIT = [], ["head"]
    mgd_cfg.SOLVER.MAX_ITER = 2
    first, second = Trainer(mgd_cfg), Trainer(mgd_cfg)
    assert any(isinstance(hook, RematchHook) for hook in first._hooks)
    name = "head.cls_subnet.0.weight"
    teacher = first.model.teacher_spec.load(torch.device("cpu")).model.state_dict()[name]
    first.resume_or_load(resume=True)
    first.train()
    learnt = first.model.state_dict()[name]
    assert 0 < (learnt - teacher).abs().max() < 3 * mgd_cfg.SOLVER.BASE_LR  # two steps of AdamW from there

    second.resume_or_load(resume=True)
    second.train()
    assert second.start_iter == 2
    assert torch.equal(second.model.state_dict()[name], learnt)
