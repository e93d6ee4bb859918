"""The optimiser, and its state across runs that do not train the same parameters."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_stock_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from packaging.version import Version
from torch import nn

from mgd_det.config.values import DTYPES, RUN_VALUES, OneOf
from mgd_det.detectron2_types import State
from mgd_det.errors import ConfigError

logger = logging.getLogger("detectron2." + __name__)

# Before torch 2.4, CPUs have no fused AdamW. It takes a sixth of the time of the plain one there.
FUSED_ANYWHERE = Version(torch.__version__) >= Version("2.4")


def warn_of_late_warm_up(cfg: CfgNode) -> None:
    """Warn if the learning rate falls before the warm-up has ended, so that it never reaches its base value.

    Detectron2's warm-up leads to the learning rate that the schedule has at its end.
    """
    steps = [step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER]
    warm_up = cfg.SOLVER.WARMUP_ITERS
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR" and steps and warm_up >= steps[0]:
        logger.warning(
            "SOLVER.WARMUP_ITERS = %d: the warm-up ends after the first of SOLVER.STEPS, %d, so the learning "
            "rate never reaches SOLVER.BASE_LR. Give a smaller number, such as %d.",
            warm_up,
            steps[0],
            cfg.SOLVER.MAX_ITER // 10,
        )


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimiser of `SOLVER.OPTIMIZER`: stock SGD, or AdamW over stock parameter groups.

    Raises:
        ConfigError: it is another one.
    """
    if optimizer_name(cfg) == "SGD":
        return build_stock_optimizer(cfg, model)
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    # A fused step undoes float16's loss scale by itself, after the gradients have been clipped: too late.
    scaled = cfg.SOLVER.AMP.ENABLED and DTYPES[cfg.SOLVER.AMP.DTYPE] is torch.float16
    fused = FUSED_ANYWHERE and not scaled
    return adamw(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=fused)


def hyperparameters(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Returns the values of each parameter group, such as its weight decay, without the parameters."""
    return [{key: x for key, x in group.items() if key != "params"} for group in optimizer.param_groups]


def restore_hyperparameters(optimizer: torch.optim.Optimizer, given: Sequence[dict[str, Any]]) -> bool:
    """Give an optimiser that took up a checkpoint's state the values of this run's config again.

    What differs from the checkpoint is logged. The current learning rates follow from the schedule, and stay.

    Args:
        optimizer: the optimiser.
        given: values of each group, from :func:`hyperparameters` before the state was loaded.

    Returns:
        True if the initial learning rates have changed.
    """
    changed: dict[str, tuple[object, object]] = {}
    for group, values in zip(optimizer.param_groups, given):
        for key, value in values.items():
            if key != "lr" and group.get(key, value) != value:
                changed.setdefault(key, (group[key], value))
            if key != "lr":
                group[key] = value
    _place_state(optimizer)
    for key, (before, now) in changed.items():
        logger.warning("--resume: %s of the optimiser changes from %s to %s", key, before, now)
    return "initial_lr" in changed


def _place_state(optimizer: torch.optim.Optimizer) -> None:
    """Put the state that a fused step reads where it looks for it, which loading does not.

    It wants step counts on the parameters' device, where others are kept on the CPU; and it takes numbers in
    the order in which they lie in memory, which DISTILL.CHANNELS_LAST may have changed since they were saved.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("fused") else ():
            state = optimizer.state.get(parameter, {})
            for name, value in state.items():
                if name == "step":
                    state[name] = value.to(parameter.device)
                elif isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def optimizer_name(cfg: CfgNode) -> str:
    """Returns "SGD" or "AdamW", which SOLVER.OPTIMIZER may name in upper or lower case.

    Raises:
        ConfigError: it names another optimiser.
    """
    rule, value = RUN_VALUES["SOLVER.OPTIMIZER"], cfg.SOLVER.OPTIMIZER
    assert isinstance(rule, OneOf)
    name = rule.find(value)
    if name is None:
        raise ConfigError("SOLVER.OPTIMIZER", value, rule.problem(value), rule.remedy)
    return name


def check_resumed_optimizer(cfg: CfgNode, saved: str) -> None:
    """Refuse, with a ConfigError, to resume with another optimiser than the checkpoint's."""
    if saved != optimizer_name(cfg):
        raise ConfigError(
            "SOLVER.OPTIMIZER",
            cfg.SOLVER.OPTIMIZER,
            f"the checkpoint holds the state of {saved}",
            "Resume with that, or start in another OUTPUT_DIR with MODEL.WEIGHTS from this one.",
        )


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Returns names of the optimiser's parameters, in the order in which its state numbers them."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def carried_over(
    saved: State, saved_names: Sequence[str], optimizer: torch.optim.Optimizer, names: Sequence[str]
) -> State:
    """Returns the state of an optimiser for another one, of partly the same parameters.

    Args:
        saved: state of the old optimiser, whose parameters are called `saved_names`.
        optimizer: the new one, whose parameters are called `names`.

    Returns:
        A state dict with the old entries of parameters that keep name and shape; the others have none yet.
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


def _fits(state: State, parameter: nn.Parameter) -> bool:
    return all(
        value.shape == parameter.shape
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.dim() > 0  # a step count has no shape
    )
