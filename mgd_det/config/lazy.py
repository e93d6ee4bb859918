"""Networks that are described by Detectron2's LazyConfig: Python files instead of yaml."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from mgd_det.errors import ConfigError

from .keys import DISTILLER


def is_lazy(name: str) -> bool:
    """Returns True if a config is a LazyConfig, by its name."""
    return name.endswith(".py")


def lazy_student(cfg: CfgNode) -> tuple[str, list[str]] | None:
    """Returns the name and overrides of the LazyConfig that describes a student, None if MODEL keys do."""
    name = cfg.DISTILL.STUDENT_ARCHITECTURE
    if cfg.MODEL.META_ARCHITECTURE == DISTILLER and is_lazy(name):
        return name, list(cfg.DISTILL.STUDENT_OPTS)
    return None


def load_lazy(name: str, overrides: Sequence[str], key: str, opts_key: str) -> DictConfig:
    """Read a LazyConfig that has a `model`.

    Args:
        name: the path of a file, or a model-zoo name.
        overrides: "key=value" each.
        key, opts_key: the keys that name and overrides come from, for messages.

    Raises:
        ConfigError: no such file, no `model` in it, or overrides that do not apply.
    """
    from hydra.errors import HydraException  # which takes long to import, and few configs need

    path = name
    if not os.path.isfile(path):
        try:
            path = model_zoo.get_config_file(name)
        except RuntimeError as error:
            problem = "neither a file nor a model-zoo name"
            raise ConfigError(key, name, problem, "Give the path of a LazyConfig (.py).") from error
    try:
        cfg = LazyConfig.load(path)
    except Exception as error:  # Python code can raise anything
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise ConfigError(key, name, problem, "Correct the file.") from error
    if "model" not in cfg:
        raise ConfigError(key, name, "has no `model`", "Name a LazyConfig that defines one.")
    try:
        return LazyConfig.apply_overrides(cfg, list(overrides))
    except (ValueError, KeyError, TypeError, AttributeError, HydraException, OmegaConfBaseException) as error:
        remedy = 'Give ["key=value", ...] with keys that exist.'
        raise ConfigError(opts_key, list(overrides), f"{type(error).__name__}: {error}", remedy) from error


def build_lazy(cfg: DictConfig, key: str, name: str) -> nn.Module:
    """Instantiate the `model`.

    Raises:
        ConfigError: Detectron2 cannot.
    """
    try:
        return instantiate(cfg.model)
    except Exception as error:  # so can the classes that it names
        problem = f"Detectron2 cannot build its model ({type(error).__name__}: {error})"
        raise ConfigError(key, name, problem, "Correct that config, or its overrides.") from error


def image_format(cfg: DictConfig) -> str:
    """Returns the channel order of the model's images: its own, its data loader's, or Detectron2's "BGR"."""
    for place in ("model.input_format", "dataloader.test.mapper.image_format"):
        found = OmegaConf.select(cfg, place)
        if found:
            return found
    return "BGR"


def num_classes(cfg: DictConfig) -> int | None:
    """Returns the number of classes that the model tells apart, None if the config does not say."""
    for place in ("model.num_classes", "model.roi_heads.num_classes"):
        found = OmegaConf.select(cfg, place)
        if found is not None:
            return int(found)
    return None


def save_lazy(cfg: DictConfig, path: str) -> None:
    """Write the `model` alone, as yaml that `LazyConfig.load` reads and `instantiate` builds."""
    LazyConfig.save(OmegaConf.create({"model": cfg.model}, flags={"allow_objects": True}), path)
