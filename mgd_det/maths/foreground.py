"""Mark the objects on a feature map, by boxes or by a classifier's scores. The functions are pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def foreground_mask(boxes: Sequence[Tensor], stride: int, height: int, width: int) -> Tensor:
    """Mark the positions of a feature map whose centres lie in a ground-truth box.

    The centre of position (y, x) is ((x + .5) * stride, (y + .5) * stride). A box holds its left and top
    edges, not its right and bottom ones. A box too small to hold any centre marks the one position that its
    own centre falls into, so that no object is lost at a coarse stride.

    Args:
        boxes: the boxes of each of N >= 1 images, (G, 4): x1, y1, x2, y2 in input pixels. G may be 0.
        stride: input pixels from one position to the next.
        height, width: H and W of the feature map.

    Returns:
        (N, 1, H, W) bool, on the boxes' device. A position outside the map is dropped.

    Raises:
        ValueError: the boxes of an image are not (G, 4).
    """
    masks = []
    for image in boxes:
        if image.dim() != 2 or image.shape[1] != 4:
            raise ValueError(f"boxes of an image must be (G, 4), got shape {tuple(image.shape)}")
        x1, y1, x2, y2 = image.to(torch.promote_types(image.dtype, torch.float32)).unbind(1)
        columns, centre_column = _positions(x1, x2, stride, width)
        rows, centre_row = _positions(y1, y2, stride, height)
        small = ~(columns.any(1) & rows.any(1))[:, None]
        columns = torch.where(small, centre_column, columns)
        rows = torch.where(small, centre_row, rows)
        masks.append((rows[:, :, None] & columns[:, None, :]).any(0))
    return torch.stack(masks)[:, None]


def _positions(low: Tensor, high: Tensor, stride: int, size: int) -> tuple[Tensor, Tensor]:
    """Find the positions that boxes cover along one axis.

    Args:
        low, high: (G,) ends of the boxes, in input pixels.
        stride: input pixels from one position to the next.
        size: number of positions.

    Returns:
        Two (G, size) bool: the positions whose centres lie in [low, high), and the one that holds the middle.
    """
    index = torch.arange(size, device=low.device)
    centres = (index + 0.5) * stride
    inside = (low[:, None] <= centres) & (centres < high[:, None])
    middle = ((low + high) / 2 / stride).floor()
    return inside, middle[:, None] == index


def class_confidence(logits: Tensor) -> Tensor:
    """Return the largest class probability at each position of a sigmoid classifier.

    Args:
        logits: (N, A K, H, W) of A anchors and K classes, any float dtype.

    Returns:
        (N, 1, H, W) in [0, 1], float32 or wider.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.amax(1, keepdim=True).sigmoid()


def confidence_at(levels: Mapping[int, Tensor], stride: int, height: int, width: int) -> Tensor:
    """Return the confidence at the positions of a feature map, from the level whose stride is nearest.

    Where that is not the map's own stride, a position takes the value of the one that holds its centre.

    Args:
        levels: (N, 1, h, w) of each level, by its stride in input pixels.
        stride: input pixels from one position of the map to the next.
        height, width: H and W of the map.

    Returns:
        (N, 1, H, W).
    """
    nearest = min(levels, key=lambda level: abs(math.log2(level / stride)))
    found = levels[nearest]
    rows, columns = (
        ((torch.arange(size, device=found.device) + 0.5) * (stride / nearest)).long().clamp_max(last - 1)
        for size, last in zip((height, width), found.shape[2:])
    )
    return found[:, :, rows[:, None], columns]
