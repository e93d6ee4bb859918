"""Compare the gradient of each distillation loss at its tap with that of the task's own losses.

The task's gradient at a tap is the gradient that arrives there in the user's own backward pass, less that of
the distillation losses. The latter is computed separately, from those losses down to the shallowest tap
alone. A loss that acts in the head is compared there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

# The losses are differentiated here without the trainer's loss scale. This factor keeps the gradients of mean
# losses out of the range that float16 rounds to zero.
_SCALE = 2.0**16


class GradientPoint:
    """A place in a network's autograd graph at which gradients are recorded.

    Args:
        tensor: a tensor in the graph, of any shape. The network may change it in place afterwards.

    Attributes:
        edge: the tensor's gradient edge.
        arrived: the gradient that arrived in the latest backward pass, of the tensor's shape; None before.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.edge = get_gradient_edge(tensor)
        self.arrived: Tensor | None = None
        tensor.register_hook(self._take)

    def _take(self, gradient: Tensor) -> None:
        self.arrived = gradient


class GradientRatios:
    """The measurement of one training step; build it between the forward and the backward pass.

    It changes neither the graph nor any gradient of the step.

    Args:
        losses: by name, a scalar loss as it enters the sum that will be differentiated, and the point in
            the network at which it acts.
        elsewhere: scalar distillation losses that act at no point, and do not belong to the task either.
    """

    def __init__(
        self, losses: Mapping[str, tuple[Tensor, GradientPoint]], elsewhere: Sequence[Tensor] = ()
    ) -> None:
        self._points = {name: point for name, (_, point) in losses.items()}
        self._own = {name: _gradients(loss, [point])[0].norm() for name, (loss, point) in losses.items()}
        points = list(dict.fromkeys(self._points.values()))
        every = torch.stack([*(loss for loss, _ in losses.values()), *elsewhere]).sum()
        self._distilled = dict(zip(points, _gradients(every, points)))
        for point in points:  # The differentiation above has left its gradients there.
            point.arrived = None
        # The factor of the user's backward pass, such as a loss scale or one over accumulated steps.
        self._scale: Tensor | None = None
        next(iter(losses.values()))[0].register_hook(self._take_scale)

    def _take_scale(self, gradient: Tensor) -> None:
        self._scale = gradient

    def ratios(self) -> dict[str, float]:
        """Return, after the backward pass, the norm of each loss's gradient over that of the task's losses.

        Returns:
            By name, the ratio at the loss's point. A loss at whose point the task has no finite gradient is
            left out. It is empty if there was no backward pass.
        """
        if self._scale is None:
            return {}
        found = {}
        for name, point in self._points.items():
            if point.arrived is None:
                continue
            task = (point.arrived.float() / self._scale.float() - self._distilled[point]).norm().item()
            if task > 0 and math.isfinite(task):
                found[name] = self._own[name].item() / task
        return found


def _gradients(loss: Tensor, points: list[GradientPoint]) -> list[Tensor]:
    """Return the gradients of a scalar loss at the points, in float32 and the points' shapes."""
    # PyTorch recommends against running a backward pass under autocast.
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(
            loss, [point.edge for point in points], torch.full_like(loss, _SCALE), retain_graph=True
        )
    return [gradient.float() / _SCALE for gradient in found]
