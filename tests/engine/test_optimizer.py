"""The optimiser's state across runs that train partly the same parameters."""

from __future__ import annotations

import logging
from copy import deepcopy

import pytest
import torch
from torch import nn

from mgd_det.engine.optimizer import (
    FUSED_ANYWHERE,
    build_optimizer,
    carried_over,
    hyperparameters,
    parameter_names,
    restore_hyperparameters,
    warn_of_late_warm_up,
)

ORDERS = (torch.contiguous_format, torch.channels_last)

logger = logging.getLogger("detectron2.mgd_det.engine.optimizer")


def trained(model: nn.Module, groups) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, float(parameter.numel()))
    optimizer.step()
    return optimizer


def test_state_follows_the_names_through_another_order_and_other_shapes():
    old = nn.ModuleDict({"student": nn.Linear(2, 3), "adapter": nn.Linear(3, 4)})
    groups = [{"params": [p for p in old.parameters() if p.dim() == d]} for d in (1, 2)]
    before = trained(old, groups)
    old_names = parameter_names(old, before)
    assert old_names == ["student.bias", "adapter.bias", "student.weight", "adapter.weight"]

    new = nn.ModuleDict({"student": nn.Linear(2, 3), "adapter": nn.Linear(3, 5)})
    optimizer = torch.optim.SGD(new.parameters(), lr=0.2, momentum=0.9)
    names = parameter_names(new, optimizer)
    state = carried_over(before.state_dict(), old_names, optimizer, names)
    optimizer.load_state_dict(state)

    momentum = {
        name: optimizer.state.get(parameter, {}).get("momentum_buffer")
        for name, parameter in zip(names, new.parameters())
    }
    assert torch.equal(momentum["student.weight"], torch.full((3, 2), 6.0))
    assert torch.equal(momentum["student.bias"], torch.full((3,), 3.0))
    assert momentum["adapter.weight"] is None  # (5, 3) now, (4, 3) before
    assert momentum["adapter.bias"] is None
    assert [group["lr"] for group in optimizer.param_groups] == [0.2]


def test_a_resumed_optimiser_takes_the_values_of_this_run_and_says_so(caplog):
    before = trained(nn.Linear(2, 3), nn.Linear(2, 3).parameters()).state_dict()
    before["param_groups"][0].update(initial_lr=0.1, lr=0.01, weight_decay=0.5)
    optimizer = torch.optim.SGD(nn.Linear(2, 3).parameters(), lr=0.02, momentum=0.9, weight_decay=0.25)
    optimizer.param_groups[0]["initial_lr"] = 0.02
    given = hyperparameters(optimizer)
    optimizer.load_state_dict(before)
    logger.addHandler(caplog.handler)
    try:
        assert restore_hyperparameters(optimizer, given)
    finally:
        logger.removeHandler(caplog.handler)
    (group,) = optimizer.param_groups
    assert (group["initial_lr"], group["weight_decay"], group["momentum"]) == (0.02, 0.25, 0.9)
    assert group["lr"] == 0.01  # until the schedule sets it
    assert list(dict.fromkeys(caplog.messages)) == [
        "--resume: weight_decay of the optimiser changes from 0.5 to 0.25",
        "--resume: initial_lr of the optimiser changes from 0.1 to 0.02",
    ]
    optimizer.load_state_dict(before)
    assert not restore_hyperparameters(optimizer, [{"weight_decay": 0.5}])


@pytest.mark.parametrize(
    "warm_up, steps, warned", [(1000, (600, 800), True), (90, (600, 800), False), (1000, (), False)]
)
def test_a_warm_up_that_ends_after_the_first_step_is_warned_of(warm_up, steps, warned, student_cfg, caplog):
    student_cfg.SOLVER.MAX_ITER, student_cfg.SOLVER.STEPS = 900, steps
    student_cfg.SOLVER.WARMUP_ITERS = warm_up
    logger.addHandler(caplog.handler)
    try:
        warn_of_late_warm_up(student_cfg)
    finally:
        logger.removeHandler(caplog.handler)
    expected = "SOLVER.WARMUP_ITERS = 1000: the warm-up ends after the first of SOLVER.STEPS, 600"
    assert any(message.startswith(expected) for message in caplog.messages) is warned


@pytest.mark.parametrize(
    ("precision", "fused"),
    [([False, "float16"], FUSED_ANYWHERE), ([True, "bfloat16"], FUSED_ANYWHERE), ([True, "float16"], False)],
)
def test_adamw_is_fused_where_no_loss_scale_comes_between_it_and_clipping(precision, fused, student_cfg):
    student_cfg.SOLVER.OPTIMIZER = "AdamW"
    student_cfg.SOLVER.AMP.ENABLED, student_cfg.SOLVER.AMP.DTYPE = precision
    optimizer = build_optimizer(student_cfg, nn.Linear(2, 3))
    assert optimizer.param_groups[0]["fused"] is fused


def test_a_fused_step_finds_the_step_counts_of_one_that_was_not():
    """On the meta device, which stands for a GPU; torch makes no fused optimiser there."""
    parameter = nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    moment = torch.zeros(2, device="meta")
    optimizer.state[parameter] = {"step": torch.tensor(7.0), "exp_avg": moment, "exp_avg_sq": moment}
    before = optimizer.state_dict()
    for fused, device in ((False, "cpu"), (True, "meta")):
        optimizer.load_state_dict(before)
        restore_hyperparameters(optimizer, [{"fused": fused}])
        assert optimizer.state[parameter]["step"].device.type == device


@pytest.mark.skipif(not FUSED_ANYWHERE, reason="this torch has no fused AdamW on CPUs")
@pytest.mark.parametrize("orders", [ORDERS, ORDERS[::-1]])
def test_a_fused_step_takes_up_state_of_another_memory_order(orders):
    """After two steps by gradients 1 to 36, whatever the order of numbers in memory at the second."""

    def stepped(order: torch.memory_format, state: dict | None) -> tuple[torch.Tensor, dict]:
        weight = nn.Parameter(torch.zeros(2, 2, 3, 3).contiguous(memory_format=order))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        if state is not None:
            optimizer.load_state_dict(deepcopy(state))
            restore_hyperparameters(optimizer, [{}])
        weight.grad = torch.empty_like(weight).copy_(gradient if state is None else -gradient)
        optimizer.step()
        return weight.detach(), optimizer.state_dict()

    gradient = torch.arange(1.0, 37.0).reshape(2, 2, 3, 3)
    _, state = stepped(orders[0], None)
    same, _ = stepped(orders[0], state)
    other, _ = stepped(orders[1], state)
    assert torch.equal(same, other)


def test_gradients_are_clipped_before_a_fused_step(student_cfg):
    student_cfg.SOLVER.OPTIMIZER, student_cfg.SOLVER.CLIP_GRADIENTS.ENABLED = "AdamW", True
    student_cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    model = nn.Linear(2, 3)
    optimizer = build_optimizer(student_cfg, model)
    model.weight.grad, model.bias.grad = torch.full((3, 2), 8.0), torch.full((3,), -8.0)
    optimizer.step()
    assert torch.equal(model.weight.grad, torch.full((3, 2), 0.5))
    assert torch.equal(model.bias.grad, torch.full((3,), -0.5))
    # The first moment after one step is (1 - beta_1) times the clipped gradient.
    assert torch.allclose(optimizer.state[model.weight]["exp_avg"], torch.full((3, 2), 0.05))
