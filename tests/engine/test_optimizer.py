"""The optimiser's state across runs that train partly the same parameters."""

from __future__ import annotations

import torch
from torch import nn

from mgd_det.engine.optimizer import carried_over, parameter_names


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
    assert old_names == ["bias", "adapter.bias", "weight", "adapter.weight"]  # a student's as if alone

    new = nn.ModuleDict({"student": nn.Linear(2, 3), "adapter": nn.Linear(3, 5)})
    optimizer = torch.optim.SGD(new.parameters(), lr=0.2, momentum=0.9)
    names = parameter_names(new, optimizer)
    state = carried_over(before.state_dict(), old_names, optimizer, names)
    optimizer.load_state_dict(state)

    momentum = {
        name: optimizer.state.get(parameter, {}).get("momentum_buffer")
        for name, parameter in zip(names, new.parameters())
    }
    assert torch.equal(momentum["weight"], torch.full((3, 2), 6.0))
    assert torch.equal(momentum["bias"], torch.full((3,), 3.0))
    assert momentum["adapter.weight"] is None  # (5, 3) now, (4, 3) before
    assert momentum["adapter.bias"] is None
    assert [group["lr"] for group in optimizer.param_groups] == [0.2]
