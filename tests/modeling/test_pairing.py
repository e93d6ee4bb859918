"""Lining up maps of two networks, by hand."""

from __future__ import annotations

import pytest
import torch

from mgd_det.modeling.pairing import common_size, pair_maps, unpadded_mask

T, F = True, False


def numbered(channels: int, height: int, width: int) -> torch.Tensor:
    """(1, C, H, W) whose value at (c, y, x) is 100 c + 10 y + x."""
    c, y, x = (torch.arange(n) for n in (channels, height, width))
    return (100 * c[:, None, None] + 10 * y[:, None] + x).float()[None]


def test_maps_are_cut_at_the_right_and_bottom_to_their_common_size():
    student, teacher = numbered(1, 2, 4), numbered(2, 3, 3)
    assert common_size(student, teacher) == (2, 3)
    found = pair_maps(student, teacher, [torch.zeros(3, 16, 24)], 8)
    assert found.student.tolist() == [[[[0, 1, 2], [10, 11, 12]]]]
    assert found.teacher.tolist() == [[[[0, 1, 2], [10, 11, 12]], [[100, 101, 102], [110, 111, 112]]]]
    assert found.mask is None
    assert found.foreground is None


def test_a_position_counts_if_it_is_unpadded_and_counted():
    """9 px high: rows 0 and 8; 17 px wide: columns 0, 8 and 16 of the common 3 x 4 positions."""
    maps = numbered(1, 3, 4), numbered(1, 3, 5)
    image = torch.zeros(3, 9, 17)
    padding = pair_maps(*maps, [image], 8).mask
    assert padding.tolist() == [[[[T, T, T, F], [T, T, T, F], [F, F, F, F]]]]
    counts = torch.ones(1, 1, 3, 4, dtype=torch.bool)
    counts[..., 1, 0] = counts[..., 2, 3] = False
    assert pair_maps(*maps, [image], 8, counts=counts).mask.tolist() == [
        [[[T, T, T, F], [F, T, T, F], [F, F, F, F]]]
    ]


def test_what_counts_is_cut_with_the_maps():
    counts = torch.tensor([[[[T, F, T], [T, T, T]]]])
    found = pair_maps(numbered(1, 2, 3), numbered(1, 1, 2), [torch.zeros(3, 16, 24)], 8, counts=counts)
    assert found.mask.tolist() == [[[[T, F]]]]


def test_ground_truth_is_marked():
    """The centres 4 and 12 of the second image's box, x 4 to 16, y 0 to 8."""
    images = [torch.zeros(3, 16, 16)] * 2
    boxes = [torch.zeros(0, 4), torch.tensor([[4.0, 0.0, 16.0, 8.0]])]
    maps = numbered(1, 2, 2).repeat(2, 1, 1, 1)
    found = pair_maps(maps, maps, images, 8, boxes=boxes)
    assert found.foreground.tolist() == [[[[F, F], [F, F]]], [[[T, T], [F, F]]]]


def test_confidence_is_that_of_the_level_of_this_stride_and_cut_with_the_maps():
    levels = {8: torch.tensor([[[[0.1, 0.2, 0.3]]]]), 16: torch.tensor([[[[0.9, 0.9]]]])}
    maps = numbered(1, 1, 2), numbered(1, 1, 3)
    found = pair_maps(*maps, [torch.zeros(3, 8, 16)], 8, confidence=levels).confidence
    assert found.flatten().tolist() == pytest.approx([0.1, 0.2])
    assert pair_maps(*maps, [torch.zeros(3, 8, 16)], 8).confidence is None


def test_a_batch_without_padding_has_no_mask_at_any_stride():
    images = [torch.zeros(3, 64, 96)] * 2
    assert all(unpadded_mask(images, s, -(-64 // s), -(-96 // s)) is None for s in (8, 16, 32, 64, 128))
