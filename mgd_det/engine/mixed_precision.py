"""A training step under autocast, on any device: `SOLVER.AMP` (mixed precision, not the reducer)."""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from detectron2.engine import SimpleTrainer
from torch import nn

from mgd_det.detectron2_types import BatchedInputs, State


class MixedPrecisionTrainer(SimpleTrainer):
    """Detectron2's AMPTrainer, for bfloat16 and for CPUs too; float16 gets a loss scale.

    Args:
        model, data_loader, optimizer: as in SimpleTrainer.
        device: on which the model is.
        dtype: precision of the operations that autocast chooses.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[BatchedInputs],
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self.device_type, self.dtype = device.type, dtype
        self.grad_scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def run_step(self) -> None:
        assert self.model.training, f"[{type(self).__name__}] the model is in eval mode"
        start = time.perf_counter()
        data = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        with torch.autocast(self.device_type, dtype=self.dtype):
            loss_dict = self.model(data)
            if isinstance(loss_dict, torch.Tensor):
                loss_dict = {"total_loss": loss_dict}
            losses = sum(loss_dict.values())
        self.optimizer.zero_grad()
        self.grad_scaler.scale(losses).backward()
        if hasattr(self, "after_backward"):  # of newer versions of Detectron2
            self.after_backward()
        self._write_metrics(loss_dict, data_time)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def state_dict(self) -> State:
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state: State) -> None:
        super().load_state_dict(state)
        if state.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state["grad_scaler"])
