"""PKD: adapters, weights and masks; the maths is in tests/maths/test_correlation.py."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from mgd_det.config import add_mgd_config
from mgd_det.errors import ConfigError
from mgd_det.methods import LossInfo, TapFeatures, TapInfo
from mgd_det.methods.pkd import PKD

STUDENT, TEACHER = {"p3": 1, "p4": 1}, {"p3": 1, "p4": 2}


def from_config(**keys) -> PKD:
    cfg = get_cfg()
    add_mgd_config(cfg)
    for key, value in {"TAPS": ["p3", "p4"], **keys}.items():
        cfg.DISTILL.PKD[key] = value
    inspected = ({tap: TapInfo(c, 8, True) for tap, c in widths.items()} for widths in (STUDENT, TEACHER))
    ours, theirs = inspected
    return PKD.from_config(cfg.DISTILL.PKD, lambda taps: ours, lambda taps: theirs)


def test_losses_by_hand():
    """At p3 1 2 3 4 against 1 3 2 4: 0.2, whatever the padding holds; at p4 the convolution negates: 2."""
    method = from_config(LOSS_WEIGHTS=[3.0, 5.0])
    assert method.losses == {"loss_pkd_p3": LossInfo("p3", 3.0), "loss_pkd_p4": LossInfo("p4", 5.0)}
    assert [type(adapter) for adapter in method.adapters.values()] == [nn.Identity, nn.Conv2d]
    nn.init.constant_(method.adapters["p4"].weight, -1.0)
    student = torch.tensor([1.0, 2, 3, 4, 9]).view(1, 1, 1, 5)
    teacher = torch.tensor([1.0, 3, 2, 4, -7]).view(1, 1, 1, 5)
    mask = torch.tensor([True] * 4 + [False]).view(1, 1, 1, 5)
    features = {
        "p3": TapFeatures(student, teacher, mask),
        "p4": TapFeatures(student, student.repeat(1, 2, 1, 1), mask),
    }
    losses = method(features)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(
        {"loss_pkd_p3": 3 * 0.2, "loss_pkd_p4": 5 * 2.0}, abs=1e-4
    )
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in method.parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"LOSS_WEIGHTS": [-1.0]}, r"PKD\.LOSS_WEIGHTS = \[-1\.0\].*at least 0"),
        ({"LOSS_WEIGHTS": [1.0] * 3}, r"PKD\.LOSS_WEIGHTS.*3 weights for 2 taps"),
        ({"TAPS": ["p3", "head"]}, r"PKD\.TAPS.*does not work on 'head'"),
    ],
)
def test_settings_that_cannot_work_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        from_config(**keys)
