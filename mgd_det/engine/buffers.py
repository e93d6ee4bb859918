"""Agreeing on buffers, such as the statistics of batch norms, that each process fills from its own images."""

from __future__ import annotations

import torch
from detectron2.engine import HookBase

from mgd_det.distributed import mean_over_ranks, unwrapped

from .schedules import due


class AgreeOnBuffers(HookBase):
    """Replaces the floating-point buffers of all processes by their mean before they are evaluated or saved.

    The processes then evaluate one network, and it is the one in the checkpoint. Register it before the hooks
    that do so.

    Args:
        periods: iterations between two checkpoints, and between two evaluations; 0: none.
    """

    def __init__(self, *periods: int) -> None:
        self.periods = periods

    def after_step(self) -> None:
        after = self.trainer.iter + 1
        if after >= self.trainer.max_iter or any(due(period, after) for period in self.periods):
            self.agree()

    @torch.no_grad()
    def agree(self) -> None:
        """Replace the buffers now; all processes call it."""
        for buffer in unwrapped(self.trainer.model).buffers():
            if buffer.is_floating_point():
                mean_over_ranks(buffer)
