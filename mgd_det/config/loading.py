"""Reading a config file with the keys of this project and of others."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode
from detectron2.utils.logger import log_first_n

from mgd_det.errors import ConfigError

from .functions import FLAG, config_with, keys_beyond
from .keys import add_mgd_config, add_missing
from .values import value_of

FUNCTIONS_KEY = "DISTILL.CONFIG_FUNCTIONS"
MIXED_TYPES = ("DISTILL.TEACHER.CHANNELS_LAST",)  # keys whose values are of several types
_MOST_SHOWN = 3  # keys in a message


def load_config(
    path: str,
    opts: Sequence[object] = (),
    *,
    device: str = "",
    key: str = "--config-file",
    opts_key: str = "overrides",
    trusted: bool = True,
    functions: Sequence[str] = (),
    other_keys: CfgNode | None = None,
) -> CfgNode:
    """Read a config file with the keys of this project and of others allowed, then apply overrides.

    Args:
        path: the path of a yaml file.
        opts: "KEY", "value", ... applied last.
        device: the value of MODEL.DEVICE, applied before `opts`; empty leaves the file's.
        key, opts_key: the names of the file and the overrides in errors.
        trusted: if False, the file and its `_BASE_` are read as plain yaml; if True, Python objects in them
            are built as Detectron2 does, which can run any code. DISTILL.UNSAFE_LOADING counts in a trusted
            file alone.
        functions: functions that add the keys of other projects, "module:function" each. The config that is
            returned names them in DISTILL.CONFIG_FUNCTIONS.
        other_keys: further keys with the values to start from, where no function adds them. One line is
            logged for those that the file leaves as they are.

    Raises:
        ConfigError: no such file, not a config, no such function, unknown keys, values of a wrong type, or
            Python objects in a file that is not trusted.
    """
    if not os.path.isfile(path):
        raise ConfigError(key, path, "there is no such file", "Give the path of a .yaml config.")
    cfg = config_with(functions)
    add_mgd_config(cfg)
    if other_keys:
        add_missing(cfg, other_keys)
    _merge_file(cfg, path, key, trusted=trusted)
    if not trusted:  # a file does not decide whether it is trusted
        cfg.DISTILL.UNSAFE_LOADING = False
    if other_keys:
        _report_left(other_keys, path, trusted=trusted)
    for name in cfg.DISTILL.CONFIG_FUNCTIONS:
        if name not in functions:  # a file does not decide which code runs
            problem = f"is of a run with {FLAG} {name}"
            raise ConfigError(key, path, problem, f"Give that flag as well ({FUNCTIONS_KEY} in a script).")
    cfg.DISTILL.CONFIG_FUNCTIONS = list(functions)
    if device:
        cfg.MODEL.DEVICE = device
    _merge_overrides(cfg, opts, opts_key)
    if list(functions) != cfg.DISTILL.CONFIG_FUNCTIONS:
        problem = "comes too late among the overrides, since the file has been read"
        raise ConfigError(FUNCTIONS_KEY, cfg.DISTILL.CONFIG_FUNCTIONS, problem, f"Give {FLAG} instead.")
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


def _report_left(other_keys: CfgNode, path: str, *, trusted: bool) -> None:
    """Log which of the keys of other projects a file does not set; those of SOLVER build no network."""
    in_file = CfgNode(CfgNode.load_yaml_with_base(path, allow_unsafe=trusted))
    left = [name for name in _keys(keys_beyond(other_keys, in_file)) if not name.startswith("SOLVER.")]
    if left:
        shown = ", ".join(left[:_MOST_SHOWN]) + (" ..." if len(left) > _MOST_SHOWN else "")
        log_first_n(
            logging.WARNING,
            f"{path} does not set {shown}, which has the value of the student's config. If it should be the "
            f"default, name the functions that add these keys in {FUNCTIONS_KEY}",
            key="message",
            name="detectron2." + __name__,
        )


def _merge_overrides(cfg: CfgNode, opts: Sequence[object], opts_key: str) -> None:
    if any(str(option).startswith("--") for option in opts):
        raise ConfigError(opts_key, list(opts), "a flag among the keys", "Give --flags before the first KEY.")
    if len(opts) % 2:
        raise ConfigError(opts_key, list(opts), "an odd number of entries", "Give KEY VALUE pairs.")
    for pair in zip(opts[::2], opts[1::2]):
        try:
            _allow_any_type(cfg, str(pair[0]))
            cfg.merge_from_list(list(pair))
        except (KeyError, ValueError, AssertionError, AttributeError) as error:
            reason = _reason(error)
            near = difflib.get_close_matches(str(pair[0]), _keys(cfg), n=1)
            hint = f"Did you mean {near[0]}?" if near and pair[0] != near[0] else "Correct it."
            raise ConfigError(opts_key, list(pair), reason, _remedy(reason, hint)) from error


def _allow_any_type(cfg: CfgNode, key: str) -> None:
    """Set a key that has values of several types to None, which yacs replaces by a value of any type."""
    if key in MIXED_TYPES:
        node, _, name = key.rpartition(".")
        value_of(cfg, node)[name] = None


def _reason(error: Exception) -> str:
    """Returns the message of an error of yacs in one line."""
    return " ".join(str(error.args[0] if error.args else error).split())


def _remedy(reason: str, otherwise: str) -> str:
    """Returns what to do about an error of yacs."""
    if "Type mismatch" in reason:
        return "Lists are written '[\"mgd\"]' or '[2.0]', tuples of one '(6000,)', fractions 35.0."
    if "key: DISTILL." in reason:
        return f"{otherwise} The keys of a method of your own are there once it has been imported."
    if "Non-existent" in reason or "non-existent" in reason:
        return f"{otherwise} Keys of another project are there with {FLAG} module:function."
    return otherwise


def _keys(cfg: CfgNode, prefix: str = "") -> list[str]:
    """Returns the full names of all keys."""
    names = []
    for key, value in cfg.items():
        names += _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names
