"""Images in a smaller size and features back at the full one, by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mgd_det.maths.resizing import Resizing


def blank(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [torch.zeros(3, *size) for size in sizes]


def test_sides_are_rounded_and_never_empty():
    resizing = Resizing.by(blank((97, 64), (3, 200)), 0.25)
    assert resizing.full == [(97, 64), (3, 200)]
    assert resizing.resized == [(24, 16), (1, 50)]


def test_images_are_averaged_not_sampled():
    """Halved: a bilinear filter with antialiasing weights 4 pixels with 1, 3, 3, 1, inside the image."""
    stripes = torch.tensor([0, 0, 80, 160, 0, 0, 0, 0], dtype=torch.uint8).expand(1, 8, 8)
    found = Resizing.by([stripes], 0.5).images([stripes])[0]
    assert found.dtype == torch.float32
    expected = [80 / 7, (3 * 80 + 3 * 160) / 8, 160 / 8, 0]
    torch.testing.assert_close(found, torch.tensor(expected).expand(1, 4, 4))


def test_features_of_images_of_half_the_size():
    """An image of 32 x 64 with stride 8 has 4 x 8 positions, and 2 x 4 in half the size."""
    row = torch.tensor([0.0, 4.0, 8.0, 12.0]).expand(1, 1, 2, 4)
    found = Resizing.by(blank((32, 64)), 0.5).features(row, 8)
    assert found.shape == (1, 1, 4, 8)
    # The centres 0.5, 1.5, ... lie at 0.25, 0.75, ... of the small map, whose first centre is 0.5.
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([0.0, 1, 3, 5, 7, 9, 11, 12]))
    torch.testing.assert_close(found[0, 0, 3], found[0, 0, 0])


def test_features_of_half_the_stride_have_the_positions_already():
    """In half the size, stride 8 has the positions of stride 16 in the full one."""
    row = torch.tensor([0.0, 4.0, 8.0, 12.0]).expand(1, 1, 2, 4)
    found = Resizing.by(blank((32, 64)), 0.5).features(row, 8, to_stride=16)
    torch.testing.assert_close(found, row)


def test_what_lies_in_the_padding_does_not_come_in():
    """The second image has 8 of 16 px in width: 1 of 2 positions, the rest of the small map is padding."""
    small = torch.tensor([[[[1.0, 2.0]]], [[[3.0, float("inf")]]]])
    found = Resizing.by(blank((16, 32), (16, 16)), 0.5).features(small, 8)
    assert found.shape == (2, 1, 2, 4)
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([1, 1.25, 1.75, 2]))
    assert found[1].eq(3).all()


def test_sides_that_are_no_multiples():
    """20 px become 15, so that the ratio is 3 / 4; with stride 8 there are 3 positions, and 2 small ones."""
    resizing = Resizing.by(blank((20, 20)), 0.73)
    assert resizing.resized == [(15, 15)]
    found = resizing.features(torch.tensor([10.0, 18.0]).expand(1, 1, 2, 2), 8)
    # 0.5, 1.5 and 2.5 lie at 0.375, 1.125 and 1.875: 0.625 behind the first centre, and behind the last one.
    torch.testing.assert_close(found[0, 0, 0], torch.tensor([10, 15, 18.0]))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0.05, 1), st.sampled_from([4, 8, 32]))
def test_a_ramp_stays_one_and_constants_stay_as_they_are(height, width, scale, stride):
    resizing = Resizing.by(blank((height, width)), scale)
    (rows, columns), ratio = resizing.resized[0], resizing.resized[0][1] / width
    h, w = -(-rows // stride), -(-columns // stride)
    ramp = torch.arange(w).float().expand(1, 1, h, w)
    found = resizing.features(ramp, stride)
    assert found.shape == (1, 1, -(-height // stride), -(-width // stride))
    expected = ((torch.arange(found.shape[3]) + 0.5) * ratio - 0.5).clamp(0, w - 1)
    torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-4, atol=1e-4)


def test_at_full_size_nothing_changes():
    features = torch.randn(1, 3, 4, 5)
    found = Resizing.by(blank((32, 40)), 1.0).features(features, 8)
    torch.testing.assert_close(found, features)


def test_even_halving_is_torchs_interpolation():
    features = torch.randn(2, 3, 4, 6)
    found = Resizing.by(blank((64, 96), (64, 96)), 0.5).features(features, 8)
    torch.testing.assert_close(found, F.interpolate(features, scale_factor=2, mode="bilinear"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_features_keep_their_dtype(dtype):
    assert Resizing.by(blank((32, 32)), 0.5).features(torch.ones(1, 1, 2, 2, dtype=dtype), 8).dtype == dtype


def test_boxes_follow_the_sides_of_their_image():
    resizing = Resizing([(20, 40), (10, 10)], [(15, 20), (5, 5)])
    boxes = resizing.boxes([torch.tensor([[4.0, 4, 40, 20]]), torch.zeros(0, 4)])
    assert boxes[0].tolist() == [[2, 3, 20, 15]]
    assert boxes[1].shape == (0, 4)
