"""Building the parts of a distiller from a config."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from mgd_det.config import DISTILLER
from mgd_det.config.lazy import build_lazy, image_format, lazy_student, load_lazy
from mgd_det.errors import ConfigError, UnknownTap, building_from_config
from mgd_det.methods import (
    CROSS_PREDICTIONS,
    PREDICTIONS,
    AssignmentControl,
    Method,
    TapInfo,
    find_method,
    method_defaults,
)
from mgd_det.rng import isolated_rng

from . import torchvision_backbone as torchvision_backbone  # which adds its builders to Detectron2's registry
from .heads import needs_full_size, needs_labels
from .tapped import TappedDetector
from .taps import student_and_teacher_names
from .teacher import CONFIG_KEY, Teacher, TeacherSpec

logger = logging.getLogger("detectron2." + __name__)

ARCHITECTURE_KEY = "DISTILL.STUDENT_ARCHITECTURE"
UNNAMED = {PREDICTIONS: "logits", CROSS_PREDICTIONS: "crosskd"}  # taps that no key names, and their methods


def build_student(cfg: CfgNode) -> nn.Module:
    """Returns the stock detector that `DISTILL.STUDENT_ARCHITECTURE` names.

    It is a meta-architecture that the MODEL keys describe, or the `model` of a LazyConfig.

    Raises:
        ConfigError: there is no such detector, or Detectron2 cannot build it.
    """
    name = cfg.DISTILL.STUDENT_ARCHITECTURE
    source = lazy_student(cfg)
    if source is not None:
        lazy = load_lazy(*source, ARCHITECTURE_KEY, "DISTILL.STUDENT_OPTS")
        if image_format(lazy) != cfg.INPUT.FORMAT:
            raise ConfigError(
                "INPUT.FORMAT",
                cfg.INPUT.FORMAT,
                f"the student of {name} takes {image_format(lazy)!r} images",
                "Set INPUT.FORMAT to that, or `input_format` in the LazyConfig's model or data loader.",
            )
        return build_lazy(lazy, ARCHITECTURE_KEY, name)
    if name == DISTILLER or name not in META_ARCH_REGISTRY:
        raise ConfigError(
            ARCHITECTURE_KEY,
            name,
            "not the name of a stock meta-architecture",
            'Name one of Detectron2\'s, for example "RetinaNet" or "GeneralizedRCNN".',
        )
    if cfg.DISTILL.STUDENT_OPTS:
        raise ConfigError(
            "DISTILL.STUDENT_OPTS",
            list(cfg.DISTILL.STUDENT_OPTS),
            f"changes students of a LazyConfig, and {name!r} is described by the MODEL keys",
            "Set those.",
        )
    with building_from_config(ARCHITECTURE_KEY, name):
        return META_ARCH_REGISTRY.get(name)(cfg)


def build_methods(cfg: CfgNode, student: TappedDetector) -> tuple[dict[str, Method], Teacher | None]:
    """Build the methods of `DISTILL.METHODS`, fitted to the student's taps.

    Returns:
        The methods by name, and the teacher with random weights if a method has asked for its widths.

    Raises:
        ConfigError: a method is unknown or named twice, or its settings do not work with these networks.
    """
    spec, device = TeacherSpec.from_config(cfg), torch.device(cfg.MODEL.DEVICE)
    built: list[Teacher] = []

    def in_teacher(taps: Sequence[str]) -> dict[str, TapInfo]:
        if not built:
            built.append(spec.build(device))
        return inspect_teacher(built[0].tapped, taps, spec.config_file)

    methods: dict[str, Method] = {}
    for name in cfg.DISTILL.METHODS:
        cls = method_class(cfg, name)
        if name in methods:
            problem = f"names {name!r} twice"
            raise ConfigError("DISTILL.METHODS", list(cfg.DISTILL.METHODS), problem, "Name it once.")
        node = cfg.DISTILL[name.upper()]
        key = f"DISTILL.{name.upper()}.TAPS" if "TAPS" in node else "DISTILL.METHODS"
        # Adapters draw their initial values aside: the student's are the same with and without them.
        with isolated_rng():
            method = cls.from_config(node, partial(inspect_student, student, key=key), in_teacher)
        methods[name] = method.to(device)
        if methods[name].matches:
            methods[name].control = _control(cfg)
    return methods, built[0] if built else None


def learn_without_labels(student: nn.Module, methods: Mapping[str, Method]) -> dict[str, Method]:
    """Returns those of some methods that can learn from images without labels."""
    return {
        name: method
        for name, method in methods.items()
        if not method.wants_foreground and not any(needs_labels(student, tap) for tap in method.taps)
    }


def check_unlabeled(cfg: CfgNode, student: nn.Module, methods: Mapping[str, Method]) -> None:
    """Check that a method learns from `DATASETS.UNLABELED`, and log which do not.

    Raises:
        ConfigError: all methods need labels.
    """
    names = list(cfg.DATASETS.UNLABELED)
    needing = sorted(methods.keys() - learn_without_labels(student, methods).keys())
    if not (names and needing):
        return
    if len(needing) == len(methods):
        problem = f"the methods of this run need labels: {', '.join(needing)}"
        remedy = 'Add a method that does not, such as "mgd", to DISTILL.METHODS, or leave the sets out.'
        raise ConfigError("DATASETS.UNLABELED", names, problem, remedy)
    logger.info(
        "DATASETS.UNLABELED: these methods need labels and leave its images out: %s", ", ".join(needing)
    )


def check_teacher_scale(cfg: CfgNode, student: nn.Module, methods: Mapping[str, Method]) -> None:
    """Check that the methods can learn from a teacher that sees smaller images.

    Raises:
        ConfigError: one of them cannot.
    """
    scale = cfg.DISTILL.TEACHER.SCALE
    for name, method in methods.items():
        if scale != 1 and any(needs_full_size(student, tap) for tap in method.taps):
            problem = (
                f"{name} compares predictions of anchors or points, whose objects are {scale:g} times as "
            )
            problem += "large in the teacher's images"
            remedy = f'Set it to 1.0, or leave "{name}" out of DISTILL.METHODS.'
            raise ConfigError("DISTILL.TEACHER.SCALE", scale, problem, remedy)


def method_class(cfg: CfgNode, name: str) -> type[Method]:
    """Returns the class of a method in DISTILL.METHODS.

    Raises:
        ConfigError: there is no method of that name.
    """
    method = find_method(name) if isinstance(name, str) else None
    if method is None:
        problem, remedy = f"there is no method {name!r}", f"Choose from {list(method_defaults())}."
        raise ConfigError("DISTILL.METHODS", list(cfg.DISTILL.METHODS), problem, remedy)
    return method


def _control(cfg: CfgNode) -> AssignmentControl:
    node = cfg.DISTILL.EXPERIMENT
    return AssignmentControl(node.ASSIGNMENT, node.ASSIGNMENT_SEED if node.ASSIGNMENT == "random" else 0)


def inspect_student(student: TappedDetector, taps: Sequence[str], key: str) -> dict[str, TapInfo]:
    """Returns what is known of taps in the student.

    Raises:
        ConfigError: it lacks one of them; the error names `key`.
    """
    try:
        found = student.inspect([student_and_teacher_names(tap)[0] for tap in taps])
    except UnknownTap as error:
        problem = f"the student has not all of the taps {list(taps)}: {error}"
        raise ConfigError(
            key, list(taps), problem, "Name taps that it has, or choose other methods."
        ) from error
    return {tap: found[student_and_teacher_names(tap)[0]] for tap in taps}


def inspect_teacher(teacher: TappedDetector, taps: Sequence[str], config_file: str) -> dict[str, TapInfo]:
    """Returns what is known of taps in the teacher.

    Raises:
        ConfigError: it lacks one of them.
    """
    try:
        found = teacher.inspect([student_and_teacher_names(tap)[1] for tap in taps])
    except UnknownTap as error:
        raise ConfigError(
            CONFIG_KEY,
            config_file,
            f"this teacher lacks one of the taps {list(taps)}: {error}",
            "Name taps that both networks have in DISTILL.<METHOD>.TAPS, or choose other methods.",
        ) from error
    return {tap: found[student_and_teacher_names(tap)[1]] for tap in taps}


def check_taps(
    methods: Mapping[str, Method],
    student: Mapping[str, TapInfo],
    teacher: Mapping[str, TapInfo],
    scale: float = 1.0,
) -> None:
    """Check that every tap can teach something.

    Args:
        methods: by name.
        student, teacher: what the networks have at each tap.
        scale: of the teacher's images. Strides may be equal in the pixels that each network sees, or in those
            of the full images.

    Raises:
        ConfigError: no gradient at a tap reaches a weight, or the networks have other positions there.
    """
    for tap, info in student.items():
        key, taps = taps_key(methods, tap)
        if not info.trainable:
            raise ConfigError(
                key,
                taps,
                f"no trainable weight of the student lies before the tap {tap!r}, so its loss would "
                "teach nothing but its own norm",
                "Lower MODEL.BACKBONE.FREEZE_AT (of a LazyConfig `freeze_at`, in DISTILL.STUDENT_OPTS), or "
                "leave that tap out.",
            )
        if not _same_positions(info, teacher[tap], scale):
            remedy = "Choose taps at which both networks have the same stride, and the same kind of head."
            if tap in UNNAMED:
                remedy = f'Choose a teacher with the same kind of head, or leave "{UNNAMED[tap]}" out.'
            ours, theirs = _positions(info), _positions(teacher[tap])
            problem = f"at {tap!r} the student has {ours} and the teacher {theirs}"
            raise ConfigError(key, taps, problem, remedy)


def _same_positions(student: TapInfo, teacher: TapInfo, scale: float) -> bool:
    if isinstance(teacher.stride, int) and student.stride == teacher.stride / scale:
        return True
    return student.stride == teacher.stride


def _positions(info: TapInfo) -> str:
    return "proposals" if info.stride is None else f"features of stride {info.stride}"


def taps_key(methods: Mapping[str, Method], tap: str) -> tuple[str, list[str]]:
    """Returns the config key that asks for a tap, and its value."""
    if tap in UNNAMED:
        return "DISTILL.METHODS", list(methods)
    name, method = next((name, method) for name, method in methods.items() if tap in method.taps)
    return f"DISTILL.{name.upper()}.TAPS", list(method.taps)
