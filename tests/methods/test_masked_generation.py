"""Masked generation: what is left out, what is generated, and its random stream."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from mgd_det.config import add_mgd_config
from mgd_det.errors import ConfigError
from mgd_det.methods import TapFeatures, TapInfo
from mgd_det.methods.masked_generation import Generation, MaskedGeneration


def built(probability: float = 0.5, rank: int = 0, taps=("p3",), channels: int = 1) -> MaskedGeneration:
    """Without adapters; its initial values are always the same."""
    torch.manual_seed(0)
    return MaskedGeneration(
        adapters={tap: nn.Identity() for tap in taps},
        weights=dict.fromkeys(taps, 1.0),
        channels=dict.fromkeys(taps, channels),
        probability=probability,
        rank=rank,
    )


def passing(method: MaskedGeneration) -> MaskedGeneration:
    """Convolutions that let positive features through as they are."""
    for parameter in method.parameters():
        nn.init.dirac_(parameter) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    return method


def loss(method: MaskedGeneration, student, teacher, mask=None) -> float:
    return method({"p3": TapFeatures(student, teacher, mask)})["loss_masked_generation_p3"].item()


def test_the_generation_by_hand():
    """2, 3 and nothing -> (times 2, less 5) -1, 1, -5 -> (ReLU) 0, 1, 0 -> (times 3, plus 1) 1, 4, 1."""
    generation = Generation(1)
    for conv, weight, bias in ((generation.first, 2.0, -5.0), (generation.second, 3.0, 1.0)):
        nn.init.zeros_(conv.weight)
        conv.weight.data[0, 0, 1, 1], conv.bias.data[0] = weight, bias
    keep = torch.tensor([True, True, False]).view(1, 1, 1, 3)
    found = generation(torch.tensor([2.0, 3.0, 9.0]).view(1, 1, 1, 3), keep, None)
    assert found.flatten().tolist() == [1, 4, 1]


def test_so_many_positions_are_left_out():
    """Against 0, features of 1 that pass through cost 1 where they are kept, and nothing elsewhere."""
    ones, zeros = torch.ones(4, 3, 50, 50), torch.zeros(4, 3, 50, 50)
    method = passing(built(0.65, channels=3))
    assert loss(method, ones, zeros) == pytest.approx(0.35, abs=0.02)  # of 10,000 positions
    assert loss(passing(built(0.0, channels=3)), ones, zeros) == 1


def test_positions_are_left_out_of_all_channels_and_get_no_gradient():
    student = torch.ones(1, 2, 4, 5, requires_grad=True)
    method = passing(built(channels=2))
    method({"p3": TapFeatures(student, torch.zeros(1, 2, 4, 5), None)})[
        "loss_masked_generation_p3"
    ].backward()
    reached = student.grad != 0
    assert torch.equal(reached[:, 0], reached[:, 1])
    assert reached.any()
    assert not reached.all()


def test_neither_batch_nor_image_nor_padding_changes_what_a_weight_means():
    """Nothing is left out, and the convolutions look two positions beyond each one."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 2, 4, 5, generator=generator)
    expected = pytest.approx(loss(built(0.0, channels=2), student, teacher), rel=1e-5)
    doubled = (x.repeat(2, 1, 1, 1) for x in (student, teacher))
    assert loss(built(0.0, channels=2), *doubled) == expected
    mask = torch.zeros(1, 1, 7, 9, dtype=torch.bool)
    mask[..., :4, :5] = True
    padded = [torch.full((1, 2, 7, 9), 100.0) for _ in range(2)]
    padded[0][..., :4, :5], padded[1][..., :4, :5] = student, teacher
    assert loss(built(0.0, channels=2), *padded, mask) == expected


def test_its_random_stream_is_its_own_and_a_resume_continues_it():
    ones, zeros = torch.ones(1, 1, 9, 9), torch.zeros(1, 1, 9, 9)
    method = passing(built())
    state = torch.get_rng_state()
    losses = [loss(method, ones, zeros) for _ in range(3)]
    saved = method.state_dict()
    losses += [loss(method, ones, zeros) for _ in range(3)]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(set(losses)) > 1
    resumed = built()
    resumed.load_state_dict(saved)
    assert [loss(resumed, ones, zeros) for _ in range(3)] == losses[3:]


def test_processes_and_taps_leave_out_other_positions():
    def kept(method: MaskedGeneration, tap: str = "p3") -> list:
        student = torch.ones(1, 1, 9, 9, requires_grad=True)
        features = dict.fromkeys(method.taps, TapFeatures(student, torch.zeros(1, 1, 9, 9), None))
        passing(method)(features)[f"loss_masked_generation_{tap}"].backward()
        return (student.grad != 0).flatten().tolist()

    found = [kept(built()), kept(built(rank=1)), kept(built(taps=("p3", "p4")), "p4")]
    assert kept(built()) == found[0]
    assert all(found.count(positions) == 1 for positions in found)


@pytest.mark.parametrize("probability", [1.0, 1.5, -0.1, float("nan")])
def test_something_is_left_to_generate_from(probability):
    cfg = get_cfg()
    add_mgd_config(cfg)
    cfg.DISTILL.MASKED_GENERATION.PROBABILITY = probability
    inspect = lambda taps: {tap: TapInfo(1, 8, True) for tap in taps}  # noqa: E731
    with pytest.raises(ConfigError, match=r"^DISTILL\.MASKED_GENERATION\.PROBABILITY = "):
        MaskedGeneration.from_config(cfg.DISTILL.MASKED_GENERATION, inspect, inspect)
