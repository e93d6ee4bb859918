"""Mimicking features with a locality-sensitive hashing loss.

Source: "Distilling Knowledge by Mimicking Features" (Wang, Ge, Wu; TPAMI 2022; arXiv 2011.01424). The adapter
that fits widths acts on the loss's side alone, so that the student stays stock and there is nothing to fold
into its next layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..hashing import hashing_loss, mimicking_loss, neighbourhoods, projection
from .base import HEAD, Features, Inspect, LossInfo, Method, TapFeatures, TapInfo, register_method
from .settings import choice, module_key, named_taps, number, tap_weights

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
    def from_config(cls, cfg: Any, student: Inspect, teacher: Inspect) -> LSH:
        key = "DISTILL.LSH"
        taps = named_taps(f"{key}.TAPS", cfg.TAPS, heads=[HEAD])
        ours, theirs = student(taps), teacher(taps)
        return cls(
            widths={tap: (ours[tap].channels, theirs[tap].channels) for tap in taps},
            weights=tap_weights(f"{key}.WEIGHTS", cfg.WEIGHTS, taps),
            num_hashes=int(number(f"{key}.NUM_HASHES", cfg.NUM_HASHES, least=1)),
            terms=[choice(f"{key}.TERMS", term, TERMS) for term in cfg.TERMS],
        )

    def attach(self, student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]) -> None:
        for tap in self.taps:
            info = teacher[tap]
            dense = info.head is not None and info.head.kind != "proposals"
            self._kernels[tap] = HEAD_KERNEL if dense else 1
            length = info.channels * self._kernels[tap] ** 2
            # The paper's choice at the head; elsewhere projections of the size of the features' mean square.
            std = length**-0.5 if info.head is None else info.head.classifier_std
            self._projections[tap] = projection(self.num_hashes, length, std, SEED)

    @property
    def losses(self) -> dict[str, LossInfo]:
        return {
            f"loss_lsh_{tap}_{term}": LossInfo(tap, weight)
            for tap, weight in self.weights.items()
            for term in self.terms
        }

    def forward(self, features: Features) -> dict[str, Tensor]:
        losses = {}
        for tap in self.taps:
            student, teacher, mask = self._rows(tap, features[tap])
            for term in self.terms:
                if term == "l2":
                    loss = mimicking_loss(student, teacher, mask)
                else:
                    weight = self._projection(tap, student.device)
                    loss = hashing_loss(student, teacher, weight, weight.new_zeros(len(weight)), mask)
                losses[f"loss_lsh_{tap}_{term}"] = loss * self.weights[tap]
        return losses

    def _rows(
        self, tap: str, features: TapFeatures | list[TapFeatures]
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Vectors of student and teacher, (M, D) each, and those that count, (M,)."""
        levels = features if isinstance(features, list) else [features]
        kernel = self._kernels[tap]
        student, teacher, masks = [], [], []
        for level in levels:
            student.append(neighbourhoods(self.adapters[module_key(tap)](level.student), kernel))
            teacher.append(neighbourhoods(level.teacher, kernel))
            mask = level.mask
            masks.append(
                student[-1].new_ones(len(student[-1]), dtype=torch.bool) if mask is None else mask.flatten()
            )
        counts = None if all(level.mask is None for level in levels) else torch.cat(masks)
        return torch.cat(student), torch.cat(teacher), counts

    def _projection(self, tap: str, device: torch.device) -> Tensor:
        if self._projections[tap].device != device:
            self._projections[tap] = self._projections[tap].to(device)
        return self._projections[tap]
