"""Mimicking features with a locality-sensitive hashing loss.

Source: "Distilling Knowledge by Mimicking Features" (Wang, Ge, Wu; TPAMI 2022; arXiv 2011.01424). The adapter
between unequal widths is applied in the loss alone, so that the student stays stock: nothing has to be folded
into its next layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Callable, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mgd_det.errors import ConfigError
from mgd_det.maths.hashing import fast_product_dtype, hashing_loss, mimicking_loss, neighbourhoods, projection

from .base import HEAD, Features, Inspect, LossInfo, Method, TapFeatures, TapInfo, levels_at, register_method
from .settings import choice, module_key, named_taps, number, tap_weights

if TYPE_CHECKING:
    from yacs.config import CfgNode

TERMS = ("l2", "hash")
HEAD_KERNEL = 3  # neighbourhood that a dense classifier looks at
SEED = 0  # of the projections


@register_method("lsh")
class LSH(Method):
    """Squared error and hashing loss between feature vectors, at the head or at any tap.

    Args:
        widths: channels of student and teacher at each tap.
        weights: of both terms together, for each tap; the paper's beta.
        num_hashes: K.
        terms: "l2" and "hash", or one of them.
    """

    def __init__(
        self,
        *,
        widths: Mapping[str, tuple[int, int]],
        weights: Mapping[str, float],
        num_hashes: int,
        terms: Sequence[str] = TERMS,
    ) -> None:
        super().__init__()
        self.taps, self.weights = list(widths), dict(weights)
        self.num_hashes, self.terms = num_hashes, list(terms)
        self.adapters = nn.ModuleDict(
            {
                module_key(tap): nn.Identity() if s == t else nn.Conv2d(s, t, 1, bias=False)
                for tap, (s, t) in widths.items()
            }
        )
        self._projections: dict[str, Tensor] = {}
        self._kernels = dict.fromkeys(self.taps, 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, student: Inspect, teacher: Inspect) -> LSH:
        key = "DISTILL.LSH"
        taps = named_taps(f"{key}.TAPS", cfg.TAPS, heads=[HEAD])
        terms = [choice(f"{key}.TERMS", term, TERMS) for term in cfg.TERMS]
        if not terms or len(set(terms)) != len(terms):
            problem = "a term is named twice" if terms else "no term is named"
            raise ConfigError(f"{key}.TERMS", terms, problem, 'Give ["l2", "hash"], or one of them.')
        ours, theirs = student(taps), teacher(taps)
        return cls(
            widths={tap: (ours[tap].channels, theirs[tap].channels) for tap in taps},
            weights=tap_weights(f"{key}.LOSS_WEIGHTS", cfg.LOSS_WEIGHTS, taps),
            num_hashes=int(number(f"{key}.NUM_HASHES", cfg.NUM_HASHES, least=1)),
            terms=terms,
        )

    def attach(self, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]) -> None:
        for tap in self.taps:
            info = teacher[tap]
            dense = info.head is not None and info.head.kind != "proposals"
            self._kernels[tap] = HEAD_KERNEL if dense else 1
            length = info.channels * self._kernels[tap] ** 2
            # At the head this is the paper's choice; elsewhere it makes a projection's variance the mean
            # square of the vector's elements.
            std = length**-0.5 if info.head is None else info.head.classifier_std
            self._projections[tap] = projection(self.num_hashes, length, std, SEED)

    @property
    def losses(self) -> dict[str, LossInfo]:
        return {
            f"loss_lsh_{tap}_{term}": LossInfo(tap, weight)
            for tap, weight in self.weights.items()
            for term in self.terms
        }

    def weight_key(self, loss: str) -> str:
        return "LOSS_WEIGHTS"

    def forward(self, features: Features) -> dict[str, Tensor]:
        losses = {}
        for tap in self.taps:
            levels = levels_at(features, tap)
            adapted = [self.adapters[module_key(tap)](level.student) for level in levels]
            for term, mean in zip(self.terms, self._means(tap, adapted, levels)):
                losses[f"loss_lsh_{tap}_{term}"] = mean * self.weights[tap]
        return losses

    def _means(self, tap: str, student: Sequence[Tensor], levels: Sequence[TapFeatures]) -> Sequence[Tensor]:
        """Returns each term's mean over the vectors of all levels that count."""
        kernel, weight = self._kernels[tap], self._projection(tap, student[0].device)
        mask = _joined_mask(levels)
        low = fast_product_dtype(weight.dtype, weight.device)
        # Half precision could not hold the gradient of a mean.
        wide = [x.to(torch.promote_types(x.dtype, torch.float32)) for x in student]

        def rows(maps: Sequence[Tensor]) -> Tensor:
            return torch.cat([neighbourhoods(x, kernel) for x in maps])

        def compute(*student: Tensor) -> list[Tensor]:
            ours = rows(student)
            theirs = rows([level.teacher.to(ours.dtype) for level in levels])
            return [
                mimicking_loss(ours, theirs, mask)
                if term == "l2"
                else hashing_loss(ours, theirs, weight, weight.new_zeros(len(weight)), mask, low)
                for term in self.terms
            ]

        means: Sequence[Tensor] = _DifferentiatedAtOnce.apply(compute, *wide)
        return means

    def _projection(self, tap: str, device: torch.device) -> Tensor:
        if self._projections[tap].device != device:
            self._projections[tap] = self._projections[tap].to(device)
        return self._projections[tap]


def _joined_mask(levels: Sequence[TapFeatures]) -> Tensor | None:
    """Returns which vectors of all levels count, (M,) bool; None where all do."""
    if all(level.mask is None for level in levels):
        return None
    masks = []
    for level in levels:
        n, _, height, width = level.student.shape
        every = level.student.new_ones(n * height * width, dtype=torch.bool)
        masks.append(every if level.mask is None else level.mask.flatten())
    return torch.cat(masks)


class _Context(Protocol):
    """The part of torch's context that is used."""

    saved_tensors: tuple[Tensor, ...]
    inputs: int

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class _DifferentiatedAtOnce(torch.autograd.Function):
    """Scalar functions of some tensors that keep nothing but their gradients for the backward pass.

    Neighbourhoods are nine times the features, and their losses would keep several such tensors.
    """

    @staticmethod
    def forward(
        ctx: _Context, compute: Callable[..., Sequence[Tensor]], *features: Tensor
    ) -> tuple[Tensor, ...]:
        # Hooks that watch or move what is saved for the backward pass should see the gradients alone.
        unseen = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
        with torch.enable_grad(), torch.autocast(features[0].device.type, enabled=False), unseen:
            leaves = [x.detach().requires_grad_() for x in features]
            losses = compute(*leaves)
            gradients = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in losses]
        ctx.inputs = len(features)
        # Copy them: the gradient of torch's `unfold` is a view of a storage of the neighbourhoods' size.
        ctx.save_for_backward(*(gradient.clone() for of_loss in gradients for gradient in of_loss))
        return tuple(loss.detach() for loss in losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: _Context, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        of_losses = [saved[i : i + ctx.inputs] for i in range(0, len(saved), ctx.inputs)]
        scaled = ([g * up for g in gradients] for gradients, up in zip(of_losses, upstream))
        return None, *(torch.stack(parts).sum(0) for parts in zip(*scaled))
