"""Batches that do not fit into memory."""

from __future__ import annotations

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn

from mgd_det import Trainer, register_datasets
from mgd_det.engine.memory import bytes_of_batch, check_memory, free_bytes
from mgd_det.errors import ConfigError
from mgd_det.modeling.tapped import TappedDetector


class Net(Backbone):
    """Keeps the input of each of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 7, 1)

    def forward(self, x):
        return {"out": self.second(self.first(x))}

    def output_shape(self):
        return {"out": ShapeSpec(channels=7, stride=1)}


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()

    def forward(self, batched_inputs):
        return self.backbone(torch.stack([x["image"].float() for x in batched_inputs]))


def test_what_a_backbone_keeps_by_hand():
    """The image, 3 channels, and the first layer's output, 5, as numbers of 4 bytes."""
    image = torch.zeros(3, 8, 16)
    for number in (1, 2, 7):
        assert bytes_of_batch(TappedDetector(Detector()), image, number) == number * 8 * 16 * (3 + 5) * 4


def test_low_precision_copies_of_weights_count_once():
    """The layers' 3 x 5 and 5 x 7 weights, beside what is kept of the images, all as numbers of 2 bytes."""
    image = torch.zeros(3, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        for number in (1, 2, 7):
            found = bytes_of_batch(TappedDetector(Detector()), image, number)
            assert found == number * 8 * 16 * (3 + 5) * 2 + (3 * 5 + 5 * 7) * 2


def test_a_batch_that_cannot_fit_is_refused():
    detector, image = TappedDetector(Detector()), torch.zeros(3, 64, 64)
    check_memory(detector, [{"image": image}])
    number = free_bytes(torch.device("cpu")) // bytes_of_batch(detector, image, 1) * 2
    with pytest.raises(ConfigError, match=r"SOLVER.IMS_PER_BATCH = .* GB are free\. Lower it"):
        check_memory(detector, [{"image": image}] * number)


def test_a_training_that_fits_is_left_as_it_is(student_cfg):
    student_cfg.DATASETS.TEST, student_cfg.SOLVER.MAX_ITER = (), 1
    register_datasets(student_cfg)
    trainer = Trainer(student_cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert not trainer.model._forward_pre_hooks
