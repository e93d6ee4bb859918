"""The positions of a feature map that lie in ground-truth boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mgd_det.maths.foreground import class_confidence, confidence_at, foreground_mask

PROPERTY = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def marked(image: Tensor, stride: int, height: int, width: int) -> list[list[int]]:
    """Of one image, as rows of 0 and 1."""
    return foreground_mask([image], stride, height, width)[0, 0].int().tolist()


def worked_out(image: Tensor, stride: int, height: int, width: int) -> Tensor:
    """(H, W), position by position and box by box, from the definition."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    for x1, y1, x2, y2 in image.tolist():
        found = False
        for y, x in np.ndindex(height, width):
            cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
            if x1 <= cx < x2 and y1 <= cy < y2:
                mask[y, x] = found = True
        if not found:
            x, y = int((x1 + x2) / 2 // stride), int((y1 + y2) / 2 // stride)
            if 0 <= x < width and 0 <= y < height:
                mask[y, x] = True
    return mask


# Corners in quarters of a pixel, up to a little beyond a map of 4 x 4 positions at stride 8.
QUARTERS = st.integers(0, 4 * 36).map(lambda x: x / 4)
BOXES = st.lists(
    st.tuples(QUARTERS, QUARTERS, QUARTERS, QUARTERS).map(
        lambda c: [min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])]
    ),
    max_size=4,
).map(lambda rows: boxes(*rows))


class TestForegroundMask:
    def test_marks_the_positions_whose_centres_lie_in_a_box(self) -> None:
        # Centres at 4, 12, 20, 28: x from 10 to 25 holds 12 and 20, y from 0 to 13 holds 4 and 12.
        assert marked(boxes([10, 0, 25, 13]), 8, 3, 4) == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]

    def test_holds_the_left_and_top_edge_of_a_box_alone(self) -> None:
        assert marked(boxes([4, 4, 12, 12]), 8, 2, 2) == [[1, 0], [0, 0]]

    def test_marks_the_union_of_the_boxes(self) -> None:
        assert marked(boxes([0, 0, 16, 8], [8, 0, 16, 16]), 8, 2, 3) == [[1, 1, 0], [0, 1, 0]]

    def test_marks_the_position_of_a_box_too_small_to_hold_a_centre(self) -> None:
        # Middle (6.5, 13) at stride 8: column 0, row 1.
        assert marked(boxes([5, 12.5, 8, 13.5]), 8, 2, 2) == [[0, 0], [1, 0]]

    def test_marks_one_position_of_a_box_too_thin_to_hold_a_centre(self) -> None:
        # y from 5 to 7 holds no centre; the middle (16, 6) is in column 2, row 0.
        assert marked(boxes([0, 5, 32, 7]), 8, 2, 4) == [[0, 0, 1, 0], [0, 0, 0, 0]]

    def test_marks_nothing_for_a_middle_outside_of_the_map(self) -> None:
        assert marked(boxes([17, 17, 19, 19]), 8, 2, 2) == [[0, 0], [0, 0]]

    def test_keeps_images_apart_also_one_without_boxes(self) -> None:
        mask = foreground_mask([boxes([0, 0, 8, 8]), boxes(), boxes([8, 0, 16, 8])], 8, 1, 2)
        assert mask.dtype == torch.bool
        assert mask.tolist() == [[[[True, False]]], [[[False, False]]], [[[False, True]]]]

    @PROPERTY
    @given(BOXES, BOXES, st.sampled_from([4, 8, 32]), st.integers(1, 4), st.integers(1, 4))
    def test_is_what_is_worked_out_position_by_position(
        self, first: Tensor, second: Tensor, stride: int, height: int, width: int
    ) -> None:
        mask = foreground_mask([first, second], stride, height, width)
        assert mask.shape == (2, 1, height, width)
        for image, found in zip((first, second), mask[:, 0]):
            assert torch.equal(found, worked_out(image, stride, height, width))

    @PROPERTY
    @given(BOXES, st.sampled_from([4, 8, 32]))
    def test_does_not_depend_on_padding(self, image: Tensor, stride: int) -> None:
        padded = foreground_mask([image], stride, 5, 6)
        assert torch.equal(padded[..., :4, :4], foreground_mask([image], stride, 4, 4))

    @PROPERTY
    @given(BOXES, st.integers(0, 23))
    def test_does_not_depend_on_the_order_of_the_boxes(self, image: Tensor, seed: int) -> None:
        order = torch.randperm(len(image), generator=torch.Generator().manual_seed(seed))
        assert marked(image[order], 8, 4, 4) == marked(image, 8, 4, 4)

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16, torch.float64])
    def test_takes_boxes_of_any_dtype(self, dtype: torch.dtype) -> None:
        assert marked(boxes([10, 0, 25, 13]).to(dtype), 8, 2, 4) == [[0, 1, 1, 0], [0, 1, 1, 0]]

    def test_is_exact_for_half_precision_boxes_far_from_the_origin(self) -> None:
        # The middle of 1999 and 2000 at stride 1 is in column 1999; float16 would round it up to 2000.
        mask = foreground_mask([boxes([1999, 0, 2000, 0.25]).half()], 1, 1, 2048)
        assert mask.flatten().nonzero().tolist() == [[1999]]

    @pytest.mark.parametrize("shape", [(4,), (0,), (3, 5)])
    def test_refuses_boxes_of_another_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"must be \(G, 4\), got shape"):
            foreground_mask([torch.zeros(shape)], 8, 2, 2)


def test_class_confidence_is_the_largest_probability_at_a_position() -> None:
    """Two anchors of two classes, at two positions."""
    probabilities = torch.tensor([[0.1, 0.2], [0.9, 0.3], [0.5, 0.4], [0.2, 0.25]])
    found = class_confidence(probabilities.logit().view(1, 4, 1, 2))
    assert found.shape == (1, 1, 1, 2)
    assert found.flatten().tolist() == pytest.approx([0.9, 0.4])
    assert class_confidence(torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)).dtype == torch.float32


# (1, 1, H, W) of two levels.
LEVELS = {
    8: torch.tensor([[[[0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.7]]]]),
    16: torch.tensor([[[[0.8, 0.9]]]]),
}


@pytest.mark.parametrize(
    ("stride", "height", "width", "expected"),
    [
        (8, 2, 4, [[0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.7]]),
        (8, 1, 2, [[0.0, 0.1]]),  # a map that was cut
        (16, 1, 2, [[0.8, 0.9]]),
        # Two positions of stride 4 lie in each of stride 8.
        (4, 2, 8, [[0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3]] * 2),
        # The centre of a position of stride 64, 32, lies behind the last of stride 16.
        (64, 1, 1, [[0.9]]),
    ],
)
def test_a_map_takes_the_level_whose_stride_is_nearest(stride, height, width, expected) -> None:
    found = confidence_at(LEVELS, stride, height, width)
    assert found.tolist() == [[[pytest.approx(row) for row in expected]]]
