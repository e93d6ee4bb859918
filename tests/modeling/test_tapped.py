"""Detectors whose features are read in their own forward pass."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn
from torch.utils.checkpoint import checkpoint

from mgd_det.errors import UnknownTap
from mgd_det.modeling.tapped import TappedDetector, channels_first, inference_inputs


class Tokens(nn.Module):
    """Features as a vision transformer keeps them: (N, H, W, C)."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Windows(nn.Module):
    """Features of windows: one image becomes four."""

    def forward(self, x):
        return torch.cat(x.chunk(4, dim=2))


class Branches(nn.Module):
    def forward(self, x):
        return [x, x]


class Net(Backbone):
    """Stride 4, 5 channels; `twice` is run two times, `after` behind all others, `aside` never."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 4, stride=4)
        self.twice = nn.Conv2d(5, 5, 1)
        self.tokens, self.windows, self.branches = Tokens(), Windows(), Branches()
        self.after, self.aside = nn.ReLU(), nn.ReLU()
        self.ran: list[str] = []
        self.after.register_forward_hook(lambda *_: self.ran.append("after"))

    def forward(self, x):
        x = self.twice(self.twice(self.stem(x)))
        for module in (self.tokens, self.windows, self.branches):
            module(x)
        return {"out": self.after(x)}

    def output_shape(self):
        return {"out": ShapeSpec(channels=5, stride=4)}


class Detector(nn.Module):
    """Neither `preprocess_image` nor a mean; it predicts without gradients, and pads to a square."""

    def __init__(self, name: str = "backbone") -> None:
        super().__init__()
        self.add_module(name, Net())
        self.net = getattr(self, name)

    @torch.no_grad()
    def forward(self, batched_inputs):
        side = max(max(x["image"].shape[1:]) for x in batched_inputs)
        images = torch.zeros(len(batched_inputs), 3, side, side)
        for image, x in zip(images, batched_inputs):
            assert x["image"].shape[1:] == (x["height"], x["width"])
            image[:, : x["height"], : x["width"]] = x["image"] / 255
        return self.net(images)


def test_properties_of_taps_of_a_detector_without_anything_but_a_forward_pass():
    info = TappedDetector(Detector()).inspect(["stem", "out"])
    assert info["stem"][:3] == info["out"][:3] == (5, 4, True)
    assert not info["stem"].channels_last


def test_channels_in_the_last_dimension_are_told_and_moved():
    detector = TappedDetector(Detector())
    info = detector.inspect(["tokens"])["tokens"]
    assert (info.channels, info.stride, info.channels_last) == (5, 4, True)
    run = detector.run(inference_inputs([torch.rand(3, 8, 12)]), ["tokens", "stem"])
    assert channels_first(run.features["tokens"], info).shape == run.features["stem"].shape == (1, 5, 3, 3)


@pytest.mark.parametrize(
    ("tap", "problem"),
    [
        ("windows", r"a tensor of shape \(8, 5, 24, 96\) for 2 images of 384 x 384"),
        ("branches", "'branches' gives no .* but a list"),
        ("aside", "'aside' gives no .* but nothing, since a forward pass does not run it"),
        ("twice", "'twice' is run 2 times in one forward pass"),
        ("nowhere", "it has the taps"),
    ],
)
def test_what_gives_no_maps_of_a_batch_is_refused_by_name(tap, problem):
    with pytest.raises(UnknownTap, match=problem):
        TappedDetector(Detector()).inspect(["stem", tap])


def test_a_pass_is_left_at_the_last_tap_or_before_the_backbone_or_at_its_end():
    detector = Detector().eval()
    tapped, inputs = TappedDetector(detector), inference_inputs([torch.full((3, 8, 12), 255.0)])
    run = tapped.run(inputs, ["stem"])
    assert run.outputs is None
    assert detector.net.ran == []
    pixels = tapped.run(inputs, []).pixels
    assert torch.equal(pixels, run.pixels)
    assert pixels.shape == (1, 3, 12, 12)
    assert pixels[0, 0, 7].tolist() == [1.0] * 12
    assert pixels[0, 0, 8].tolist() == [0.0] * 12
    assert tapped.run(inputs, ["stem"], whole=True).outputs["out"].shape == (1, 5, 3, 3)
    assert detector.net.ran == ["after"]


def test_the_backbone_is_found_by_its_name_its_class_or_a_path():
    detector = Detector("trunk")
    assert TappedDetector(detector).backbone is detector.trunk
    assert TappedDetector(detector, "trunk.stem").backbone is detector.trunk.stem
    with pytest.raises(UnknownTap, match="no module 'tail' to be its backbone"):
        _ = TappedDetector(detector, "tail").backbone
    with pytest.raises(UnknownTap, match="Linear has no `backbone`, and no Backbone of Detectron2 inside"):
        _ = TappedDetector(nn.Linear(1, 1)).backbone


def test_a_detector_that_does_not_run_on_images_says_why():
    class Broken(Detector):
        def forward(self, batched_inputs):
            return self.net(batched_inputs[0]["depth"])

    with pytest.raises(UnknownTap, match=r"Broken does not run in eval mode .* \(KeyError: 'depth'\)"):
        TappedDetector(Broken()).inspect(["stem"])


class Checkpointed(Net):
    """Recomputes everything in the backward pass, in one of torch's two ways."""

    reentrant = False

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


def test_activation_checkpointing_without_reentry_gives_the_same_gradient_at_a_tap():
    torch.manual_seed(0)
    plain, again = Net(), Checkpointed()
    again.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 8, 8)
    gradients = []
    for backbone in (plain, again):
        with TappedDetector(nn.ModuleDict({"backbone": backbone})).capture(["stem"]) as found:
            output = backbone(images)["out"]
        (output.sum() + found["stem"].square().sum()).backward()
        gradients.append(backbone.stem.weight.grad)
    assert torch.equal(*gradients)
