"""Images in a smaller size, and what a network computes from them back at the full one. Pure torch.

As in `foreground.py`, position (y, x) of a feature map lies at ((x + .5) * stride, (y + .5) * stride).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Resizing:
    """A batch of images that a network sees in another size.

    The sides of the resized images are rounded to whole pixels. What is computed from them is brought back by
    the ratio of the actual sides, which can differ a little from image to image.

    Args:
        full: height and width of each of the N images.
        resized: those of the same images in the other size.
    """

    full: Sequence[tuple[int, int]]
    resized: Sequence[tuple[int, int]]

    @classmethod
    def by(cls, images: Sequence[Tensor], scale: float) -> Resizing:
        """Returns the resizing of images, (C, H, W) each, by a factor; no side falls below 1 pixel."""
        full = [(image.shape[-2], image.shape[-1]) for image in images]
        return cls(full, [(_scaled(height, scale), _scaled(width, scale)) for height, width in full])

    def images(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Returns the resized images in float32: bilinear, with antialiasing.

        Args:
            images: (C, H, W) each, of any dtype.
        """
        return [
            F.interpolate(image[None].float(), size=size, mode="bilinear", antialias=True)[0]
            for image, size in zip(images, self.resized)
        ]

    def boxes(self, boxes: Sequence[Tensor]) -> list[Tensor]:
        """Returns the boxes of each full image, (R, 4) in its pixels, in those of the resized one."""
        return [
            box * box.new_tensor([width / full_width, height / full_height] * 2)
            for box, (full_height, full_width), (height, width) in zip(boxes, self.full, self.resized)
        ]

    def features(self, features: Tensor, stride: int, to_stride: int | None = None) -> Tensor:
        """Returns features of the resized images at the positions that the full ones have, bilinear.

        Positions of the padding repeat the last ones inside the image.

        Args:
            features: (N, C, h, w), computed from the resized images with padding at the right and bottom.
            stride: of the features, in pixels of the resized images.
            to_stride: of the positions, in pixels of the full images; None: the same number.

        Returns:
            (N, C, H, W) in the features' dtype; H and W are those of the largest image without padding.
        """
        to_stride = stride if to_stride is None else to_stride
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        for axis in range(2):
            number = -(-max(image[axis] for image in self.full) // to_stride)
            centres = (torch.arange(number, device=features.device, dtype=torch.float32) + 0.5) * to_stride
            places = []
            for image, seen in zip(self.full, self.resized):
                last = min(-(-seen[axis] // stride), features.shape[2 + axis]) - 1
                places.append((centres * (seen[axis] / image[axis]) / stride - 0.5).clamp(0, last))
            wide = _interpolated(wide, torch.stack(places), 2 + axis)
        return wide.to(features.dtype)

    def levels(self, levels: Mapping[int, Tensor], factor: int) -> dict[int, Tensor]:
        """Returns maps at the positions that full images have with `factor` times their strides.

        Args:
            levels: by stride, as :meth:`features` takes them.
            factor: 1 where a map answers for the positions of its own stride.
        """
        return {stride * factor: self.features(x, stride, stride * factor) for stride, x in levels.items()}


def _interpolated(x: Tensor, places: Tensor, dim: int) -> Tensor:
    """Returns (N, C, H, W) features at other places along one dimension, linear between two positions.

    Args:
        x: (N, C, H, W).
        places: (N, L) of each image, from 0; a whole number is read from its own position alone.
        dim: 2 or 3, whose size becomes L.
    """
    before, after = places.floor(), places.ceil()
    shape = [len(places), 1, 1, 1]
    shape[dim] = -1
    start, end = (x.take_along_dim(place.long().reshape(shape), dim) for place in (before, after))
    return torch.lerp(start, end, (places - before).to(x.dtype).reshape(shape))


def _scaled(side: int, scale: float) -> int:
    return max(round(side * scale), 1)
