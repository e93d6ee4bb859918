"""The functions with which other projects add their keys to a config, by their names."""

from __future__ import annotations

import argparse
import copy
import importlib
from collections.abc import Sequence
from typing import Callable

from detectron2.config import CfgNode, get_cfg

from mgd_det.errors import ConfigError

FLAG = "--config-function"
_REMEDY = (
    'Give it as "module:function", for example "projects.mine.config:add_my_config"; Python must find the '
    "module, for example by PYTHONPATH=."
)


def add_config_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--config-function` to a command line, whose values are then a list, `config_function`."""
    parser.add_argument(
        FLAG,
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="a function of another project that adds its keys to a config; may be given several times",
    )


def config_functions(names: Sequence[str]) -> list[Callable[[CfgNode], object]]:
    """Import functions by their names; their modules register the architectures and mappers of a project.

    Args:
        names: "module:function" each.

    Raises:
        ConfigError: there is no such function.
    """
    return [_find(name) for name in names]


def config_with(names: Sequence[str]) -> CfgNode:
    """Returns Detectron2's default config with the keys that these functions add.

    Raises:
        ConfigError: there is no such function, or it fails.
    """
    cfg = get_cfg()
    for name, function in zip(names, config_functions(names)):
        try:
            function(cfg)
        except Exception as error:  # code of other projects can raise anything
            problem = f"fails on Detectron2's default config ({type(error).__name__}: {error})"
            raise ConfigError(FLAG, name, problem, "Name a function that takes a config.") from error
    return cfg


def keys_beyond(cfg: CfgNode, known: CfgNode) -> CfgNode:
    """Returns the keys of a config that another one lacks, with their values."""
    found = CfgNode()
    for key, value in cfg.items():
        if key not in known:
            found[key] = copy.deepcopy(value)
        elif isinstance(value, dict) and isinstance(known[key], dict):  # also yacs's own nodes
            inside = keys_beyond(value, known[key])
            if inside:
                found[key] = inside
    return found


def _find(name: str) -> Callable[[CfgNode], object]:
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise ConfigError(FLAG, name, "does not name a module and a function", _REMEDY)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # so can the module while it is imported
        problem = f"cannot be imported ({type(error).__name__}: {error})"
        raise ConfigError(FLAG, name, problem, _REMEDY) from error
    if not callable(found):
        raise ConfigError(FLAG, name, "is no function", _REMEDY)
    return found
