"""Plain imitation and channel-wise transformation on hand-made features."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from mgd_det.config import add_mgd_config
from mgd_det.errors import ConfigError
from mgd_det.methods import LossInfo, TapFeatures, TapInfo
from mgd_det.methods.imitation import AdaptedImitation, ChannelMLP, Imitation

NAN = float("nan")


def plain(
    weight: float = 1.0, adapter: nn.Module | None = None, foreground: float = 1.0, by: str = "boxes"
) -> AdaptedImitation:
    return AdaptedImitation(
        name="imitation",
        adapters={"p3": nn.Identity() if adapter is None else adapter},
        weights={"p3": weight},
        foreground_weight=foreground,
        foreground=by,
    )


def loss(method: AdaptedImitation, *features) -> torch.Tensor:
    (found,) = method({"p3": TapFeatures(*features)}).values()
    return found


def row(*channels, **options) -> torch.Tensor:
    """(1, C, 1, W)"""
    return torch.tensor([[[channel] for channel in channels]], **options)


def test_value_and_gradient_by_hand():
    """Differences 1, -2 and 3, 0: mean square (1 + 4 + 9 + 0) / 4, its gradient 2 d / 4; times 0.5."""
    student = row([1.0, 0.0], [3.0, 4.0]).requires_grad_()
    found = loss(plain(0.5), student, row([0.0, 2.0], [0.0, 4.0]), None)
    assert found.item() == 0.5 * 14 / 4
    found.backward()
    assert student.grad.tolist() == [[[[0.25, -0.5]], [[0.75, 0.0]]]]


def test_masked_positions_count_nothing_whatever_they_hold():
    """The first position alone: differences 1 and 3, mean square 5."""
    mask = torch.tensor([[[[True, False]]]])
    student = row([1.0, NAN], [3.0, 4.0]).requires_grad_()
    found = loss(plain(), student, row([0.0, 2.0], [0.0, NAN]), mask)
    assert found.item() == 5
    found.backward()
    assert student.grad.tolist() == [[[[1.0, 0.0]], [[3.0, 0.0]]]]


def test_a_teacher_that_is_nan_in_padding_does_not_reach_the_adapter():
    torch.manual_seed(0)
    adapter = nn.Conv2d(1, 2, 1)
    mask = torch.tensor([[[[True, False]]]])
    loss(plain(adapter=adapter), row([1.0, 2.0]), row([0.0, NAN], [0.0, NAN]), mask).backward()
    assert all(p.grad.isfinite().all() for p in adapter.parameters())
    assert adapter.weight.grad.any()


def test_foreground_counts_more():
    """Mean squares 1, 4 and 9 of three positions, the last one padding: (3 * 1 + 1 * 4) / (3 + 1)."""
    features = row([1.0, 2.0, 3.0]), row([0.0, 0.0, 0.0]), torch.tensor([[[[True, True, False]]]])
    foreground = torch.tensor([[[[True, False, True]]]])
    assert plain(foreground=3.0).wants_foreground
    assert loss(plain(foreground=3.0), *features, foreground).item() == 7 / 4
    # Weights below 1, and 0; nothing that counts at all.
    assert loss(plain(foreground=0.5), *features, foreground).item() == pytest.approx((0.5 + 4) / 1.5)
    assert loss(plain(foreground=0.0), *features, foreground).item() == 4
    everything = torch.ones(1, 1, 1, 3, dtype=torch.bool)
    student = features[0].clone().requires_grad_()
    nothing = loss(plain(foreground=0.0), student, *features[1:], everything)
    nothing.backward()
    assert nothing.item() == 0
    assert student.grad.tolist() == [[[[0.0, 0.0, 0.0]]]]


def test_a_position_counts_as_far_as_the_teacher_takes_it_for_an_object():
    """Mean squares 1, 4 and 9, the last one padding: (1 + 4 * 0.5) * 1 + (1 + 4 * 0) * 4, by 3 + 1."""
    features = row([1.0, 2.0, 3.0]), row([0.0, 0.0, 0.0]), torch.tensor([[[[True, True, False]]]])
    boxes, confidence = torch.tensor([[[[False, True, True]]]]), torch.tensor([[[[0.5, 0.0, 1.0]]]])
    method = plain(foreground=5.0, by="teacher")
    assert (method.wants_confidence, method.wants_foreground) == (True, False)
    # Boxes that another method asked for change nothing.
    assert loss(method, *features, boxes, confidence).item() == pytest.approx((3 * 1 + 1 * 4) / (3 + 1))
    method = plain(foreground=5.0)
    assert (method.wants_confidence, method.wants_foreground) == (False, True)
    assert loss(method, *features, boxes, confidence).item() == pytest.approx((1 * 1 + 5 * 4) / (1 + 5))


def test_foreground_that_another_method_asked_for_changes_nothing():
    features = row([1.0, 2.0]), row([0.0, 0.0]), None
    foreground = torch.tensor([[[[True, False]]]])
    assert not plain().wants_foreground
    assert loss(plain(), *features, foreground).item() == loss(plain(), *features).item() == 2.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features_give_a_float32_loss(dtype):
    """300 squared is beyond float16, and 300.5 beyond bfloat16's digits."""
    student = row([300.0, 2.0], dtype=dtype).requires_grad_()
    found = loss(plain(), student, row([0.0, 0.0], dtype=dtype), torch.tensor([[[[True, True]]]]))
    assert found.dtype == torch.float32
    assert found.item() == (300**2 + 4) / 2
    found.backward()
    assert student.grad.tolist() == [[[[300.0, 2.0]]]]
    double = row([1.0], dtype=torch.float64)
    assert loss(plain(), double, row([0.0]), None).dtype == torch.float64


def test_under_autocast_the_loss_is_float32():
    torch.manual_seed(0)
    student, teacher = torch.randn(1, 4, 3, 3), torch.randn(1, 6, 3, 3)
    method = plain(adapter=nn.Conv2d(4, 6, 1))
    exact = loss(method, student, teacher, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(method, student, teacher, None)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact.item(), rel=2e-2)


def test_the_mlp_by_hand():
    """W1 F = (1, -1) + (0, 0.5) -> relu (1, 0); W2 (1, 0) + 2 = (5, 2); squares 4 and 9 to (3, 5)."""
    mlp = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1))
    values = [[1.0, -1.0], [0.0, 0.5], [[3.0, 7.0], [0.0, 9.0]], [2.0, 2.0]]
    for parameter, value in zip(mlp.parameters(), values):
        parameter.data.copy_(torch.tensor(value).view_as(parameter))
    student = row([1.0]).requires_grad_()
    found = loss(plain(adapter=mlp), student, row([3.0], [5.0]), None)
    assert found.item() == (4 + 9) / 2
    found.backward()
    # d loss / d output (2, -3); through W2's first column (3, 0) and the living unit, whose weight is 1.
    assert student.grad.item() == 2 * 3
    assert mlp[0].weight.grad.flatten().tolist() == [6.0, 0.0]


# From the config.


def inspected(**channels):
    return lambda taps: {tap: TapInfo(channels[tap], 8, True) for tap in taps}


def from_config(cls, student, teacher, **keys):
    cfg = get_cfg()
    add_mgd_config(cfg)
    node = cfg.DISTILL[{Imitation: "IMITATION", ChannelMLP: "CHANNEL_MLP"}[cls]]
    for key, value in keys.items():
        node[key] = value
    return cls.from_config(node, inspected(**student), inspected(**teacher))


WIDTHS = {"p3": 4, "p4": 4}, {"p3": 4, "p4": 6}


@pytest.mark.parametrize(
    ("kind", "kinds"), [("auto", [nn.Identity, nn.Conv2d]), ("always", [nn.Conv2d, nn.Conv2d])]
)
def test_adapters_of_plain_imitation(kind, kinds):
    method = from_config(Imitation, *WIDTHS, TAPS=["p3", "p4"], ADAPTER=kind, LOSS_WEIGHTS=[1.0, 2.0])
    assert [type(adapter) for adapter in method.adapters.values()] == kinds
    assert method.adapters["p4"].weight.shape == (6, 4, 1, 1)
    assert method.losses == {
        "loss_imitation_p3": LossInfo("p3", 1.0),
        "loss_imitation_p4": LossInfo("p4", 2.0),
    }
    features = {
        tap: TapFeatures(*(torch.ones(1, widths[tap], 2, 2) for widths in WIDTHS), None) for tap in WIDTHS[0]
    }
    assert list(method(features)) == list(method.losses)


def test_without_adapters_widths_must_agree():
    equal = {"p3": 4, "p4": 4}
    method = from_config(Imitation, equal, equal, TAPS=["p3", "p4"], ADAPTER="never")
    assert list(method.parameters()) == []
    with pytest.raises(ConfigError, match=r"IMITATION\.ADAPTER = 'never'.*'p4'.* 4 .* 6.*\"auto\""):
        from_config(Imitation, *WIDTHS, TAPS=["p3", "p4"], ADAPTER="never")


@pytest.mark.parametrize(("hidden", "width"), [(0, 6), (5, 5)])
def test_hidden_width_of_the_mlp(hidden, width):
    method = from_config(ChannelMLP, *WIDTHS, TAPS=["p4"], HIDDEN=hidden)
    shapes = [tuple(p.shape) for p in method.parameters()]
    assert shapes == [(width, 4, 1, 1), (width,), (6, width, 1, 1), (6,)]
    assert method.losses == {"loss_channel_mlp_p4": LossInfo("p4", 1.0)}
    assert not method.wants_foreground


@pytest.mark.parametrize(
    ("cls", "keys", "message"),
    [
        (Imitation, {"ADAPTER": "some"}, r"IMITATION\.ADAPTER = 'some'.*'auto', 'always', 'never'"),
        (Imitation, {"LOSS_WEIGHTS": [1.0, -1.0]}, r"IMITATION\.LOSS_WEIGHTS.*at least 0"),
        (Imitation, {"LOSS_WEIGHTS": [1.0] * 3}, r"IMITATION\.LOSS_WEIGHTS.*3 weights for 2 taps"),
        (Imitation, {"FOREGROUND_WEIGHT": -1.0}, r"IMITATION\.FOREGROUND_WEIGHT = -1"),
        (Imitation, {"FOREGROUND_WEIGHT": NAN}, r"IMITATION\.FOREGROUND_WEIGHT = nan"),
        (Imitation, {"FOREGROUND": "labels"}, r"IMITATION\.FOREGROUND = 'labels'.*'boxes', 'teacher'"),
        (Imitation, {"FOREGROUND": "teacher"}, r"IMITATION\.FOREGROUND_WEIGHT = 1\.0.*all positions alike"),
        (Imitation, {"TAPS": []}, r"IMITATION\.TAPS.*no tap"),
        (Imitation, {"TAPS": ["p3", "p3"]}, r"IMITATION\.TAPS.*twice"),
        (Imitation, {"TAPS": ["p3", "head"]}, r"IMITATION\.TAPS.*does not work on 'head'"),
        (Imitation, {"TAPS": ["p3=predictions"]}, r"IMITATION\.TAPS.*does not work on 'p3=predictions'"),
        (ChannelMLP, {"TAPS": ["head=p3"]}, r"CHANNEL_MLP\.TAPS.*does not work on 'head=p3'"),
        (ChannelMLP, {"HIDDEN": -1}, r"CHANNEL_MLP\.HIDDEN = -1"),
    ],
)
def test_settings_that_cannot_work_are_named(cls, keys, message):
    with pytest.raises(ConfigError, match=message):
        from_config(cls, *WIDTHS, **{"TAPS": ["p3", "p4"], **keys})
