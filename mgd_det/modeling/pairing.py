"""Lining up the features of two networks that saw the same images. Pure torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mgd_det.maths.foreground import confidence_at, foreground_mask
from mgd_det.methods import TapFeatures


def pair_maps(
    student: Tensor,
    teacher: Tensor,
    images: Sequence[Tensor],
    stride: int,
    *,
    counts: Tensor | None = None,
    boxes: Sequence[Tensor] | None = None,
    confidence: Mapping[int, Tensor] | None = None,
) -> TapFeatures:
    """Returns two maps of one stride, cut to their common size, with the positions that count.

    Args:
        student, teacher: (N, C, H, W); the networks may pad to different multiples, always at the right
            and bottom.
        images: (C, h, w) each, before padding.
        stride: of the maps.
        counts: (N, 1, H, W) bool, True at positions that count if they are not padding; None: all do.
        boxes: (G, 4) ground truth of each image, in pixels; None leaves `foreground` out.
        confidence: (N, 1, H, W) of the teacher's levels, by stride; None leaves `confidence` out.
    """
    height, width = common_size(student, teacher)
    mask = unpadded_mask(images, stride, height, width)
    if counts is not None:
        counts = counts[..., :height, :width]
        mask = counts if mask is None else mask & counts
    foreground = None if boxes is None else foreground_mask(boxes, stride, height, width)
    return TapFeatures(
        student[..., :height, :width],
        teacher[..., :height, :width],
        mask,
        foreground,
        None if confidence is None else confidence_at(confidence, stride, height, width),
    )


def common_size(*maps: Tensor) -> tuple[int, int]:
    """Returns the smallest height and width of (N, C, H, W) maps."""
    return min(x.shape[2] for x in maps), min(x.shape[3] for x in maps)


def unpadded_mask(images: Sequence[Tensor], stride: int, height: int, width: int) -> Tensor | None:
    """Returns (N, 1, height, width), True where y * stride and x * stride lie inside the image.

    Returns None where that holds throughout, so that the common case costs nothing.
    """
    rows = [-(-image.shape[-2] // stride) for image in images]
    columns = [-(-image.shape[-1] // stride) for image in images]
    if min(rows) >= height and min(columns) >= width:
        return None
    device = images[0].device
    extents = torch.tensor([rows, columns])
    if device.type == "cuda":  # a copy from ordinary memory would make the host wait for the GPU
        extents = extents.pin_memory()
    valid_rows, valid_columns = extents.to(device, non_blocking=True)[..., None]
    inside_rows = torch.arange(height, device=device) < valid_rows
    inside_columns = torch.arange(width, device=device) < valid_columns
    return inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
