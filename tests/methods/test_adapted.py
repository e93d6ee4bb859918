"""The methods that adapt the student's features, on hand-made ones; their maths has tests of its own."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from mgd_det.config import add_mgd_config
from mgd_det.errors import ConfigError
from mgd_det.methods import BoxMeaning, HeadInfo, LossInfo, TapFeatures, TapInfo
from mgd_det.methods.cwd import CWD
from mgd_det.methods.imitation import Imitation
from mgd_det.methods.masked_generation import MaskedGeneration
from mgd_det.methods.pkd import PKD

METHODS = {"imitation": Imitation, "pkd": PKD, "cwd": CWD, "masked_generation": MaskedGeneration}
STUDENT, TEACHER = {"p3": 1, "p4": 1}, {"p3": 1, "p4": 2}


def from_config(name: str, **keys):
    """With equal widths at p3 and others at p4."""
    cfg = get_cfg()
    add_mgd_config(cfg)
    node = cfg.DISTILL[name.upper()]
    for key, value in {"TAPS": ["p3", "p4"], **keys}.items():
        node[key] = value
    ours, theirs = ({tap: TapInfo(c, 8, True) for tap, c in widths.items()} for widths in (STUDENT, TEACHER))
    return METHODS[name].from_config(node, lambda taps: ours, lambda taps: theirs)


def on_class_maps(student: HeadInfo, teacher: HeadInfo) -> CWD:
    cfg = get_cfg()
    add_mgd_config(cfg)
    cfg.DISTILL.CWD.TAPS, cfg.DISTILL.CWD.LOSS_WEIGHTS = ["classes"], [1.0]
    infos = ({"classes": TapInfo(9, [8], True, head=head)} for head in (student, teacher))
    ours, theirs = infos
    return CWD.from_config(cfg.DISTILL.CWD, lambda taps: ours, lambda taps: theirs)


def seeded(name: str, **keys):
    """The same initial values every time."""
    torch.manual_seed(0)
    return from_config(name, **keys)


def row(*values: float) -> torch.Tensor:
    """(1, 1, 1, W)"""
    return torch.tensor(values).view(1, 1, 1, -1)


@pytest.mark.parametrize("name", METHODS)
def test_adapters_and_weights(name):
    method = from_config(name, LOSS_WEIGHTS=[3.0, 5.0])
    assert method.taps == ["p3", "p4"]
    assert method.losses == {
        f"loss_{name}_p3": LossInfo("p3", 3.0),
        f"loss_{name}_p4": LossInfo("p4", 5.0),
    }
    assert {method.weight_key(loss) for loss in method.losses} == {"LOSS_WEIGHTS"}
    assert isinstance(method.adapters["p3"], nn.Identity)
    assert method.adapters["p4"].weight.shape == (2, 1, 1, 1)


@pytest.mark.parametrize("name", METHODS)
def test_a_weight_multiplies_its_loss(name):
    features = {tap: TapFeatures(row(1.0, 5.0, 2.0), row(3.0, 1.0, 4.0), None) for tap in ("p3",)}
    losses = [
        seeded(name, TAPS=["p3"], LOSS_WEIGHTS=[weight])(features)[f"loss_{name}_p3"].item()
        for weight in (1.0, 3.0)
    ]
    assert losses[1] == pytest.approx(3 * losses[0])
    assert losses[0] > 0


@pytest.mark.parametrize("name", METHODS)
def test_a_gradient_reaches_the_student_and_every_parameter(name):
    method = from_config(name)
    student = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.ones(2, 1, 3, 4, dtype=torch.bool)
    mask[1, :, :, 2:] = False
    teacher = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    features = {"p3": TapFeatures(student, teacher[:, :1], mask), "p4": TapFeatures(student, teacher, mask)}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method(features)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    assert student.grad.any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_state_is_of_its_taps(name):
    """With equal widths, which have no adapter, too."""
    state = from_config(name, TAPS=["p3"]).state_dict()
    from_config(name, TAPS=["p3"]).load_state_dict(state)
    problem = rf"{name.upper()}\.TAPS = \['p3', 'p4'\]: the checkpoint is of the taps \['p3'\]"
    with pytest.raises(ConfigError, match=problem):
        from_config(name).load_state_dict(state)


def test_pkd_by_hand():
    """At p3 1 2 3 4 against 1 3 2 4: 0.2, whatever the padding holds; at p4 the convolution negates: 2."""
    method = from_config("pkd", LOSS_WEIGHTS=[3.0, 5.0])
    nn.init.constant_(method.adapters["p4"].weight, -1.0)
    student, mask = row(1.0, 2, 3, 4, 9), row(1.0, 1, 1, 1, 0).bool()
    features = {
        "p3": TapFeatures(student, row(1.0, 3, 2, 4, -7), mask),
        "p4": TapFeatures(student, student.repeat(1, 2, 1, 1), mask),
    }
    losses = {name: loss.item() for name, loss in method(features).items()}
    assert losses == pytest.approx({"loss_pkd_p3": 3 * 0.2, "loss_pkd_p4": 5 * 2.0}, abs=1e-4)


def test_cwd_by_hand():
    """At T = 2 the teacher has (1/4, 3/4), the student (1/2, 1/2), times T^2; a shift changes nothing."""
    method = from_config("cwd", TAPS=["p3"], LOSS_WEIGHTS=[3.0], TEMPERATURE=2.0)
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    features = TapFeatures(row(7.0, 7.0, 0.0), row(5.0, 5 + 2 * math.log(3), 99.0), row(1, 1, 0).bool())
    assert method({"p3": features})["loss_cwd_p3"].item() == pytest.approx(3 * 4 * divergence, rel=1e-5)


def test_cwd_on_class_maps_is_the_mean_over_the_levels():
    """No adapter stands between them. One level has the divergence above at T = 1, the other none."""
    head = HeadInfo("anchors", 2, BoxMeaning({}), 0.01, False)
    method = on_class_maps(head, head)
    method.attach(
        {"classes": TapInfo(9, [8, 16], True, head=head)}, {"classes": TapInfo(9, [8, 16], True, head=head)}
    )
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    levels = [
        TapFeatures(row(7.0, 7.0, 0.0), row(5.0, 5 + math.log(3), 99.0), row(1, 1, 0).bool()),
        TapFeatures(row(1.0, 2.0), row(4.0, 5.0), None),
    ]
    assert method({"classes": levels})["loss_cwd_classes"].item() == pytest.approx(divergence / 2, rel=1e-5)
    assert not list(method.parameters())


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"kind": "proposals"}, {}, r"CWD\.TAPS = \['classes'\].*the student has no class maps"),
        ({}, {"kind": "proposals"}, r"CWD\.TAPS = \['classes'\].*the teacher has no class maps"),
        (
            {},
            {"kind": "points"},
            "METHODS = 'cwd': the student predicts anchors by sigmoid, and the teacher points",
        ),
        ({}, {"num_classes": 3}, r"METHODS = 'cwd': the student has 2 classes .* teacher 3"),
        ({}, {"boxes": BoxMeaning({}, anchors=[[[0.0, 0.0, 8.0, 8.0]]])}, "METHODS = 'cwd': .*anchors are"),
    ],
)
def test_class_maps_that_cannot_be_compared_are_named(ours, theirs, message):
    head = HeadInfo("anchors", 2, BoxMeaning({}), 0.01, False)
    student, teacher = head._replace(**ours), head._replace(**theirs)
    with pytest.raises(ConfigError, match=message):
        infos = [{"classes": TapInfo(9, [8], True, head=x)} for x in (student, teacher)]
        on_class_maps(student, teacher).attach(*infos)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"LOSS_WEIGHTS": [-1.0]}, r"LOSS_WEIGHTS = \[-1\.0\].*at least 0"),
        ({"LOSS_WEIGHTS": [1.0] * 3}, r"LOSS_WEIGHTS.*3 weights for 2 taps"),
        ({"TAPS": []}, r"TAPS = \[\].*no tap"),
        ({"TAPS": ["p3", "head"]}, r"TAPS.*does not work on 'head'"),
    ],
)
@pytest.mark.parametrize("name", METHODS)
def test_settings_that_cannot_work_are_named(name, keys, message):
    with pytest.raises(ConfigError, match=rf"^DISTILL\.{name.upper()}\.{message}"):
        from_config(name, **keys)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_is_above_zero(temperature):
    with pytest.raises(ConfigError, match=r"CWD\.TEMPERATURE = .*not a finite number over 0"):
        from_config("cwd", TEMPERATURE=temperature)
