"""How strongly each distillation loss pulls at its tap, beside the task's own losses. No Detectron2.

The task's gradient at a tap is had from the user's own backward pass: what arrives there, less what the
distillation losses bring, which is computed apart, from those losses down to the shallowest tap alone.
A loss that acts in the head is followed from there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

# Lifts the gradients of mean losses, differentiated here without the trainer's loss scale, out of the
# range that float16 rounds to zero.
_SCALE = 2.0**16


class GradientPoint:
    """A place in a network's graph at which gradients are looked at.

    Args:
        tensor: (N, C, H, W), in the graph. The network may go on to change it in place.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.edge = get_gradient_edge(tensor)
        self.arrived: Tensor | None = None  # in the latest backward pass
        tensor.register_hook(self._take)

    def _take(self, gradient: Tensor) -> None:
        self.arrived = gradient


class GradientRatios:
    """A measurement in one training step, begun between its forward and its backward pass.

    The graph is left as it was, and so are all gradients of the step.

    Args:
        losses: name -> a scalar as it enters the sum that will be differentiated, and the point in the
            network at which it acts.
        elsewhere: distillation losses that act at no point, and are no task's either.
    """

    def __init__(
        self, losses: Mapping[str, tuple[Tensor, GradientPoint]], elsewhere: Sequence[Tensor] = ()
    ) -> None:
        self._points = {name: point for name, (_, point) in losses.items()}
        self._own = {name: _gradients(loss, [point])[0].norm() for name, (loss, point) in losses.items()}
        points = list(dict.fromkeys(self._points.values()))
        every = torch.stack([*(loss for loss, _ in losses.values()), *elsewhere]).sum()
        self._distilled = dict(zip(points, _gradients(every, points)))
        for point in points:  # the differentiation above has passed there, too
            point.arrived = None
        self._scale: Tensor | None = None  # of the user's backward pass: a loss scale, an accumulation
        next(iter(losses.values()))[0].register_hook(self._take_scale)

    def _take_scale(self, gradient: Tensor) -> None:
        self._scale = gradient

    def ratios(self) -> dict[str, float]:
        """After the backward pass: norm of each loss's gradient at its point, over that of the task losses.

        Empty where there was no backward pass, or its gradients overflowed; a loss at whose point the
        task has no gradient is left out.
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
    """Of a scalar at the points, in float32."""
    # A backward pass does not belong into the autocast region that its forward pass ran in.
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(
            loss, [point.edge for point in points], torch.full_like(loss, _SCALE), retain_graph=True
        )
    return [gradient.float() / _SCALE for gradient in found]
