"""Compare the gradient of each distillation loss at its tap with that of the task's own losses.

The task's gradient at a tap is the gradient that arrives there in the user's own backward pass, less that of
the distillation losses. The latter is computed separately, from those losses down to the shallowest tap
alone. A loss that acts in the head is compared at the backbone's outputs, which the head is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

# The losses are differentiated here without the trainer's loss scale. This factor keeps the gradients of mean
# losses out of the range that float16 rounds to zero.
_SCALE = 2.0**16
# The rounding of what arrives at a point, relative to its norm, in units of the machine epsilon of its dtype:
# rounding in the layers above adds up.
_ROUNDING = 4


class GradientPoint:
    """A place in a network's autograd graph at which gradients are recorded.

    Args:
        tensors: one or more tensors in the graph, of any shapes, which together are the place. The network
            may change them in place afterwards.

    Attributes:
        edges: the tensors' gradient edges.
        arrived: the gradients that arrived in the latest backward pass, of the tensors' shapes; None before,
            and where none arrived.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.edges = [get_gradient_edge(tensor) for tensor in tensors]
        self.arrived: list[Tensor | None] = [None] * len(tensors)
        for number, tensor in enumerate(tensors):
            tensor.register_hook(partial(self._take, number))

    def _take(self, number: int, gradient: Tensor) -> None:
        self.arrived[number] = gradient

    def forget(self) -> None:
        """Forget what has arrived."""
        self.arrived = [None] * len(self.edges)


class GradientRatios:
    """The measurement of one training step; build it between the forward and the backward pass.

    It changes neither the graph nor any gradient of the step.

    Args:
        losses: by name, a scalar loss and the point in the network at which it acts.
        entered: all scalar distillation losses as they enter the sum that will be differentiated, whatever
            factors they have there. What arrives at a point beside theirs is the task's.
    """

    def __init__(self, losses: Mapping[str, tuple[Tensor, GradientPoint]], entered: Sequence[Tensor]) -> None:
        self._points = {name: point for name, (_, point) in losses.items()}
        self._own = {name: _norm(_gradients(loss, [point])[0]) for name, (loss, point) in losses.items()}
        points = list(dict.fromkeys(self._points.values()))
        self._distilled = dict(zip(points, _gradients(torch.stack(list(entered)).sum(), points)))
        for point in points:  # The differentiation above has left its gradients there.
            point.forget()
        # The factor of the user's backward pass, such as a loss scale or one over accumulated steps.
        self._scale: Tensor | None = None
        entered[0].register_hook(self._take_scale)

    def _take_scale(self, gradient: Tensor) -> None:
        self._scale = gradient

    def ratios(self) -> dict[str, float]:
        """Return, after the backward pass, the norm of each loss's gradient over that of the task's losses.

        Returns:
            By name, the ratio at the loss's point. A loss is left out if its gradient or the task's is
            not finite, or if the task's is no larger than the rounding of what arrived, as where losses pull
            some 30 times as strongly as the task in bfloat16. It is empty if there was no backward pass.
        """
        if self._scale is None:
            return {}
        found = {}
        for name, point in self._points.items():
            task, rounding = self._task(point, self._scale.float())
            own = self._own[name].item()
            if task > rounding and math.isfinite(task) and math.isfinite(own):
                found[name] = own / task
        return found

    def _task(self, point: GradientPoint, scale: Tensor) -> tuple[float, float]:
        """Return the norm of the task's gradient at a point, and how large its rounding may be."""
        arrived = [None if gradient is None else gradient.float() / scale for gradient in point.arrived]
        task = [
            None if gradient is None else gradient - _or_zero(distilled)
            for gradient, distilled in zip(arrived, self._distilled[point])
        ]
        epsilons = [torch.finfo(gradient.dtype).eps for gradient in point.arrived if gradient is not None]
        return _norm(task).item(), _ROUNDING * max(epsilons, default=0.0) * _norm(arrived).item()


def _gradients(loss: Tensor, points: list[GradientPoint]) -> list[list[Tensor | None]]:
    """Return the gradients of a scalar loss at the points' tensors, in float32 and the tensors' shapes.

    A tensor on which the loss does not depend has None.
    """
    edges = [edge for point in points for edge in point.edges]
    # PyTorch recommends against running a backward pass under autocast.
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(
            loss, edges, torch.full_like(loss, _SCALE), retain_graph=True, allow_unused=True
        )
    scaled = iter([None if gradient is None else gradient.float() / _SCALE for gradient in found])
    return [[next(scaled) for _ in point.edges] for point in points]


def _norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return the norm of several gradients as one vector; of none it is 0."""
    norms = [gradient.norm() for gradient in gradients if gradient is not None]
    return torch.stack(norms).norm() if norms else torch.zeros(())


def _or_zero(gradient: Tensor | None) -> Tensor | float:
    return 0.0 if gradient is None else gradient
