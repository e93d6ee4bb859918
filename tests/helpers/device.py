"""The device of the tensors in tests of the maths: the CPU, or TEST_DEVICE, which tools/gpu_check.py sets."""

from __future__ import annotations

import os

import torch

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cpu"))
