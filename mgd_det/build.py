"""Building the parts of a distiller from a config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from .config import DISTILLER
from .errors import ConfigError, explained
from .methods import Method, TapInfo, find_method, method_names
from .rng import isolated_rng
from .taps import UnknownTap, inspect_taps, sides


def build_student(cfg: CfgNode) -> nn.Module:
    """The stock detector that `DISTILL.STUDENT_ARCHITECTURE` and the MODEL keys describe."""
    name = cfg.DISTILL.STUDENT_ARCHITECTURE
    if name == DISTILLER or name not in META_ARCH_REGISTRY:
        raise ConfigError(
            "DISTILL.STUDENT_ARCHITECTURE",
            name,
            "not the name of a stock meta-architecture",
            'Name one of Detectron2\'s, for example "RetinaNet" or "GeneralizedRCNN".',
        )
    with explained("DISTILL.STUDENT_ARCHITECTURE", name):
        return META_ARCH_REGISTRY.get(name)(cfg)


def build_methods(cfg: CfgNode, student: nn.Module) -> dict[str, Method]:
    """The methods of `DISTILL.METHODS`, fitted to the student's taps."""
    methods = {}
    for name in cfg.DISTILL.METHODS:
        method = find_method(name) if isinstance(name, str) else None
        if method is None:
            raise ConfigError(
                "DISTILL.METHODS",
                list(cfg.DISTILL.METHODS),
                f"there is no method {name!r}",
                f"Choose from {method_names()}.",
            )

        def inspect(taps: Sequence[str], key: str = f"DISTILL.{name.upper()}.TAPS") -> Any:
            try:
                found = inspect_taps(student, [sides(tap)[0] for tap in taps])
            except UnknownTap as error:
                problem = f"the student has not all of these: {error}"
                raise ConfigError(key, list(taps), problem, "Name taps from that list.") from error
            return {tap: found[sides(tap)[0]] for tap in taps}

        # Adapters draw their initial values aside: the student's are the same with and without them.
        with isolated_rng():
            methods[name] = method.from_config(cfg.DISTILL[name.upper()], inspect)
    return methods


def check_strides(
    methods: Mapping[str, Method], student: Mapping[str, TapInfo], teacher: Mapping[str, TapInfo]
) -> None:
    """Refuse taps at which the two networks' features differ in stride."""
    for tap in student:
        if student[tap].stride != teacher[tap].stride:
            raise ConfigError(
                taps_key(methods, tap),
                list(student),
                f"at {tap!r} the student's features have stride {student[tap].stride} and the "
                f"teacher's {teacher[tap].stride}",
                "Choose taps at which both networks have the same stride.",
            )


def taps_key(methods: Mapping[str, Method], tap: str) -> str:
    """The config key that names a tap."""
    name = next(name for name, method in methods.items() if tap in method.taps)
    return f"DISTILL.{name.upper()}.TAPS"
