"""The optimiser, and its state across runs that do not train the same parameters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from mgd_det.errors import ConfigError

logger = logging.getLogger("detectron2." + __name__)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """`SOLVER.OPTIMIZER`: stock SGD, or AdamW over stock parameter groups."""
    if cfg.SOLVER.OPTIMIZER == "SGD":
        return build_stock_optimizer(cfg, model)
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


def check_resumed_optimizer(cfg: CfgNode, saved: str) -> None:
    """Refuse, with a ConfigError, to resume with another optimiser than the checkpoint's."""
    if saved != cfg.SOLVER.OPTIMIZER:
        raise ConfigError(
            "SOLVER.OPTIMIZER",
            cfg.SOLVER.OPTIMIZER,
            f"the checkpoint holds the state of {saved}",
            "Resume with that, or start in another OUTPUT_DIR with MODEL.WEIGHTS from this one.",
        )


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the optimiser's parameters, in the order in which its state numbers them.

    Those of a distiller's student are the same as of the student alone.
    """
    names = {id(p): name.removeprefix("student.") for name, p in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def carried_over(
    saved: dict[str, Any], saved_names: Sequence[str], optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> dict[str, Any]:
    """The state for an optimiser that another one, of partly the same parameters, has left.

    Args:
        saved: state of the other one, whose parameters are called `saved_names`.
        optimizer: the one to load it; its parameters are called `names`.

    Returns:
        A state dict: what belongs to a parameter of the same name and shape is kept, the rest is new.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = {saved_names[number]: state for number, state in saved["state"].items()}
    state = {
        number: before[name]
        for number, (name, parameter) in enumerate(zip(names, parameters))
        if name in before and _fits(before[name], parameter)
    }
    logger.warning("the optimiser's state is carried over for %d of %d parameters", len(state), len(names))
    return {**optimizer.state_dict(), "state": state}


def _fits(state: dict[str, Any], parameter: nn.Parameter) -> bool:
    return all(
        value.shape == parameter.shape
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim() > 0  # a step count has no shape
    )
