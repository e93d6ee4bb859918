"""Where tests of the maths put their tensors: the CPU, or what TEST_DEVICE says in tools/gpu_check.py."""

from __future__ import annotations

import os

import torch

DEVICE = torch.device(os.environ.get("TEST_DEVICE", "cpu"))
