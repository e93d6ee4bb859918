"""Reading a config file with this project's keys, and the way back to stock Detectron2."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode, get_cfg

from mgd_det.errors import ConfigError

from .keys import DISTILLER, add_mgd_config


def load_config(
    path: str,
    opts: Sequence[object] = (),
    *,
    device: str = "",
    key: str = "--config-file",
    opts_key: str = "overrides",
    trusted: bool = True,
) -> CfgNode:
    """Read a config file with this project's keys allowed, then apply overrides.

    Args:
        path: the path of a yaml file.
        opts: "KEY", "value", ... applied last.
        device: the value of MODEL.DEVICE, applied before `opts`; empty leaves the file's.
        key, opts_key: the names of the file and the overrides in errors.
        trusted: if False, the file and its `_BASE_` are read as plain yaml; if True, Python objects in them
            are built as Detectron2 does, which can run any code.

    Raises:
        ConfigError: no such file, not a config, unknown keys, values of a wrong type, or Python objects in a
            file that is not trusted.
    """
    if not os.path.isfile(path):
        raise ConfigError(key, path, "there is no such file", "Give the path of a .yaml config.")
    cfg = get_cfg()
    add_mgd_config(cfg)
    _merge_file(cfg, path, key, trusted=trusted)
    if device:
        cfg.MODEL.DEVICE = device
    _merge_overrides(cfg, opts, opts_key)
    return cfg


def _merge_file(cfg: CfgNode, path: str, key: str, *, trusted: bool) -> None:
    try:
        cfg.merge_from_file(path, allow_unsafe=trusted)
    except yaml.constructor.ConstructorError as error:
        remedy = "Correct the file."
        if not trusted:
            remedy = (
                "Python objects in a config can run any code; write plain values. If you trust where it "
                "comes from: with DISTILL.UNSAFE_LOADING True, a teacher's config is read as it is."
            )
        raise ConfigError(key, path, f"is not plain yaml ({error.problem})", remedy) from error
    except (KeyError, ValueError, AssertionError, AttributeError, OSError, yaml.YAMLError) as error:
        reason = _reason(error)
        raise ConfigError(key, path, reason, _remedy(reason, "Correct the file.")) from error


def _merge_overrides(cfg: CfgNode, opts: Sequence[object], opts_key: str) -> None:
    if any(str(option).startswith("--") for option in opts):
        raise ConfigError(opts_key, list(opts), "a flag among the keys", "Give --flags before the first KEY.")
    if len(opts) % 2:
        raise ConfigError(opts_key, list(opts), "an odd number of entries", "Give KEY VALUE pairs.")
    for pair in zip(opts[::2], opts[1::2]):
        try:
            cfg.merge_from_list(list(pair))
        except (KeyError, ValueError, AssertionError, AttributeError) as error:
            reason = _reason(error)
            near = difflib.get_close_matches(str(pair[0]), _keys(cfg), n=1)
            hint = f"Did you mean {near[0]}?" if near and pair[0] != near[0] else "Correct it."
            raise ConfigError(opts_key, list(pair), reason, _remedy(reason, hint)) from error


def _reason(error: Exception) -> str:
    """Returns the message of an error of yacs in one line."""
    return " ".join(str(error.args[0] if error.args else error).split())


def _remedy(reason: str, otherwise: str) -> str:
    """Returns what to do about an error of yacs."""
    if "Type mismatch" in reason:
        return "Lists are written '[\"mgd\"]' or '[2.0]', tuples of one '(6000,)', fractions 35.0."
    if "key: DISTILL." in reason:
        return f"{otherwise} The keys of a method of your own are there once it has been imported."
    return otherwise


def _keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Returns the full names of all keys."""
    names = []
    for key, value in cfg.items():
        names += _keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [f"{prefix}{key}"]
    return names


def student_config(cfg: CfgNode) -> CfgNode:
    """Returns the config of the student alone in stock keys, from which stock Detectron2 builds it.

    Only a student that is made from a network of torchvision or timm keeps `MODEL.TORCHVISION`.
    """
    stock = get_cfg()
    student = cfg.clone()
    student.defrost()
    if student.MODEL.META_ARCHITECTURE == DISTILLER:
        student.MODEL.META_ARCHITECTURE = student.DISTILL.STUDENT_ARCHITECTURE
    torchvision = student.MODEL.TORCHVISION
    _drop_added_keys(student, stock)
    if torchvision.NAME:
        student.MODEL.TORCHVISION = torchvision
    return student


def _drop_added_keys(cfg: CfgNode, stock: CfgNode) -> None:
    for key in list(cfg):
        if key not in stock:
            del cfg[key]
        elif isinstance(cfg[key], CfgNode):
            _drop_added_keys(cfg[key], stock[key])
