"""Types of what Detectron2 hands over, whose own are not checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# One dict for each image: "image" (C, H, W), and in training "instances".
BatchedInputs = list[dict[str, Any]]

# The key of True in those that have no labels, and from which the task does not learn.
UNLABELED = "unlabeled"

# A state dict: tensors and plain values, under names.
State = dict[str, Any]


class ImageList:
    """The part of `detectron2.structures.ImageList` that this package reads."""

    tensor: Tensor  # (N, C, H, W)


class Detector(nn.Module):
    """The part of a stock detector that this package uses, for type checkers alone.

    Detectron2's detectors do not derive from it. It is a class instead of a Protocol because no Protocol can
    say that something is an `nn.Module`, too.
    """

    backbone: nn.Module
    device: torch.device
    pixel_mean: Tensor  # (C, 1, 1)
    pixel_std: Tensor  # (C, 1, 1)

    def preprocess_image(self, batched_inputs: BatchedInputs) -> ImageList:
        """Normalises and pads the images."""
        raise NotImplementedError
