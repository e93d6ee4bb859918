"""Hashing on hand-made features: what becomes a row, what is hashed along, what the loss is of."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn
from torch.nn import functional as F

from mgd_det.config import add_mgd_config
from mgd_det.errors import ConfigError
from mgd_det.maths.hashing import fast_product_dtype, hashing_loss, mimicking_loss, neighbourhoods, projection
from mgd_det.methods import HeadInfo, LossInfo, TapFeatures, TapInfo
from mgd_det.methods.lsh import LSH, SEED

HASHES = 16


def head(kind: str, std: float = 0.25) -> HeadInfo:
    return HeadInfo(kind, 6, {}, std, kind == "proposals")


def lsh(tap: str = "p3", student: int = 2, teacher: int = 2, kind: str = "", **options) -> LSH:
    method = LSH(
        widths={tap: (student, teacher)},
        weights={tap: 1.0},
        **{"num_hashes": HASHES, "terms": ["l2", "hash"], **options},
    )
    infos = [TapInfo(c, 8, True, head=head(kind) if kind else None) for c in (student, teacher)]
    method.attach({tap: infos[0]}, {tap: infos[1]})
    return method


def maps(channels: int, *sizes, n: int = 2, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, channels, *size, generator=generator) for size in sizes]


def direct(method: LSH, tap: str, student: torch.Tensor, teacher: torch.Tensor) -> dict[str, float]:
    """Of rows that all count."""
    weight = method._projections[tap]
    return {
        f"loss_lsh_{tap}_l2": pytest.approx(mimicking_loss(student, teacher).item(), rel=1e-6),
        f"loss_lsh_{tap}_hash": pytest.approx(
            hashing_loss(
                student,
                teacher,
                weight,
                torch.zeros(len(weight)),
                product_dtype=fast_product_dtype(torch.float32, weight.device),
            ).item(),
            rel=1e-6,
        ),
    }


def values(losses: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: loss.item() for name, loss in losses.items()}


def test_both_terms_by_hand():
    """One vector (1, 2) of the student, (3, 2) of the teacher, two hashes."""
    method = lsh()
    method._projections["p3"] = torch.tensor([[1.0, 1.0], [0.0, -1.0]])
    features = TapFeatures(
        torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.tensor([3.0, 2.0]).view(1, 2, 1, 1), None
    )
    losses = method({"p3": features})
    assert losses["loss_lsh_p3_l2"].item() == (2**2 + 0) / 2
    # The teacher's projections 5 and -2: bits 1 and 0; the student's logits 3 and -2.
    expected = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(-2))) / 2
    assert losses["loss_lsh_p3_hash"].item() == pytest.approx(expected, rel=1e-6)


def test_rows_of_a_plain_tap_are_its_positions():
    (student,), (teacher,) = maps(3, (2, 4)), maps(3, (2, 4), seed=1)
    method = lsh(student=3, teacher=3)
    rows = [
        torch.stack([x[n, :, i, j] for n in range(2) for i in range(2) for j in range(4)])
        for x in (student, teacher)
    ]
    losses = method({"p3": TapFeatures(student, teacher, None)})
    assert list(losses) == list(method.losses)
    assert values(losses) == direct(method, "p3", *rows)


@pytest.mark.parametrize("kind", ["anchors", "points"])
def test_rows_of_a_dense_head_are_neighbourhoods_on_all_levels(kind):
    """3 x 3, zeros beyond the border, in the order of a convolution's weight."""
    sizes = (3, 4), (2, 2)
    student, teacher = maps(2, *sizes), maps(2, *sizes, seed=1)
    method = lsh("head", kind=kind)

    def rows(levels):
        found = []
        for level in levels:
            padded = F.pad(level, (1, 1, 1, 1))
            n, _, height, width = level.shape
            found += [
                padded[i, :, y : y + 3, x : x + 3].flatten()
                for i in range(n)
                for y in range(height)
                for x in range(width)
            ]
        return torch.stack(found)

    assert rows(student).shape == (2 * (12 + 4), 2 * 9)
    levels = [TapFeatures(s, t, None) for s, t in zip(student, teacher)]
    losses = method({"head": levels})
    assert values(losses) == direct(method, "head", rows(student), rows(teacher))


def test_rows_of_proposals_are_their_vectors():
    student, teacher = torch.randn(5, 4, 1, 1), torch.randn(5, 4, 1, 1)
    method = lsh("head", 4, 4, kind="proposals")
    losses = method({"head": [TapFeatures(student, teacher, None)]})
    assert values(losses) == direct(method, "head", student.flatten(1), teacher.flatten(1))


def test_rows_that_do_not_count_are_left_out_level_by_level():
    """A mask on the second of three levels; the first and the third count throughout."""
    sizes = (1, 2), (2, 2), (1, 1)
    student, teacher = maps(2, *sizes, n=1), maps(2, *sizes, n=1, seed=1)
    mask = torch.tensor([[[[True, False], [False, True]]]])
    student[1][0, :, 0, 1] = float("nan")
    levels = [TapFeatures(s, t, m) for s, t, m in zip(student, teacher, (None, mask, None))]
    method = lsh()
    places = [(0, 0, 0), (0, 0, 1), (1, 0, 0), (1, 1, 1), (2, 0, 0)]
    rows = [torch.stack([side[level][0, :, y, x] for level, y, x in places]) for side in (student, teacher)]
    assert values(method({"p3": levels})) == direct(method, "p3", *rows)


def test_no_row_at_all_is_no_loss():
    """An image of which no proposal was sampled."""
    student = torch.zeros(0, 4, 1, 1, requires_grad=True)
    method = lsh("head", 4, 6, kind="proposals")
    losses = method({"head": [TapFeatures(student, torch.zeros(0, 6, 1, 1), None)]})
    assert values(losses) == {"loss_lsh_head_l2": 0.0, "loss_lsh_head_hash": 0.0}
    sum(losses.values()).backward()
    assert method.adapters["head"].weight.grad is not None


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_those_of_the_rows(masked):
    """Taken at once in the forward pass, and the same as autograd's; scaled by what comes from behind."""
    sizes = (3, 4), (2, 2)
    student, teacher = maps(2, *sizes), maps(2, *sizes, seed=1)
    masks = [torch.rand(2, 1, *size) > 0.4 if masked else None for size in sizes]
    method = lsh("head", kind="anchors")
    weight = method._projections["head"]
    counts = torch.cat([x.flatten() for x in masks]) if masked else None
    for term in ("l2", "hash"):
        ours, theirs = ([x.clone().requires_grad_() for x in student] for _ in range(2))
        levels = [TapFeatures(*x) for x in zip(ours, teacher, masks)]
        loss = method({"head": levels})[f"loss_lsh_head_{term}"]
        (3 * loss).backward()
        rows = [torch.cat([neighbourhoods(x, 3) for x in side]) for side in (theirs, teacher)]
        if term == "l2":
            expected = mimicking_loss(*rows, counts)
        else:
            low = fast_product_dtype(torch.float32, weight.device)
            expected = hashing_loss(*rows, weight, torch.zeros(HASHES), counts, low)
        (3 * expected).backward()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
        assert all(torch.allclose(x.grad, y.grad, atol=1e-6) for x, y in zip(ours, theirs))


def test_no_neighbourhoods_wait_for_the_backward_pass():
    """The features' own size is all that each term keeps, not nine times that."""
    kept: dict[int, int] = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    (student,), (teacher,) = maps(4, (8, 8)), maps(4, (8, 8), seed=1)
    levels = [TapFeatures(student.requires_grad_(), teacher, torch.ones(2, 1, 8, 8, dtype=torch.bool))]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        losses = lsh("head", 4, 4, kind="anchors")({"head": levels})
    assert sum(kept.values()) < 2.1 * student.nbytes
    sum(losses.values()).backward()


def test_widths_that_differ_get_a_linear_layer_and_equal_ones_none():
    assert list(lsh().parameters()) == []
    method = lsh(student=2, teacher=3)
    (weight,) = method.parameters()
    assert weight.shape == (3, 2, 1, 1)
    (student,), (teacher,) = maps(2, (2, 2)), maps(3, (2, 2), seed=1)
    rows = [x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for x in (student, teacher)]
    found = values(method({"p3": TapFeatures(student, teacher, None)}))
    assert found == direct(method, "p3", rows[0] @ weight[..., 0, 0].T.detach(), rows[1])


def test_projections_are_the_same_in_every_process_and_not_in_the_checkpoint():
    torch.manual_seed(1)
    one = lsh("head", kind="anchors")
    torch.manual_seed(2)
    state = torch.get_rng_state()
    other = lsh("head", kind="anchors")
    assert torch.equal(one._projections["head"], other._projections["head"])
    assert torch.equal(torch.get_rng_state(), state)
    assert one.state_dict() == {"_extra_state": {"taps": ["head"]}}
    assert list(one.parameters()) == []


@pytest.mark.parametrize(
    ("kind", "length", "std"),
    [("anchors", 9 * 64, 0.25), ("points", 9 * 64, 0.25), ("proposals", 64, 0.25), ("", 64, 1 / 8)],
)
def test_projections_are_as_wide_as_the_classifiers_weights(kind, length, std):
    """At a plain tap 1 / sqrt(D), so that a projection's variance is the elements' mean square."""
    weight = lsh("head", 64, 64, kind=kind, num_hashes=512)._projections["head"]
    assert torch.equal(weight, projection(512, length, std, SEED))
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    if not kind:
        vector = torch.randn(64)
        assert (weight @ vector).square().mean().item() == pytest.approx(
            vector.square().mean().item(), rel=0.2
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["anchors", ""])
def test_half_precision_features_give_float32_losses(dtype, kind):
    (student,), (teacher,) = maps(2, (3, 3)), maps(2, (3, 3), seed=1)
    features = TapFeatures(student.to(dtype).requires_grad_(), teacher.to(dtype), None)
    exact = TapFeatures(features.student.detach().float(), features.teacher.float(), None)
    method = lsh("head", kind=kind)
    losses, expected = (method({"head": [x]}) for x in (features, exact))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert values(losses) == pytest.approx(values(expected), rel=1e-6)
    sum(losses.values()).backward()
    assert features.student.grad.isfinite().all()
    assert features.student.grad.any()


def test_under_autocast_the_losses_are_float32():
    (student,), (teacher,) = maps(2, (3, 3)), maps(3, (3, 3), seed=1)
    method = lsh("head", 2, 3, kind="anchors")
    features = {"head": [TapFeatures(student, teacher, None)]}
    exact = values(method(features))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method(features)
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert values(losses) == pytest.approx(exact, rel=2e-2)


# From the config.


def from_config(**keys) -> LSH:
    cfg = get_cfg()
    add_mgd_config(cfg)
    for key, value in keys.items():
        cfg.DISTILL.LSH[key] = value

    def inspect(width: int):
        return lambda taps: {tap: TapInfo(width, 8, True) for tap in taps}

    return LSH.from_config(cfg.DISTILL.LSH, inspect(4), inspect(6))


def test_the_papers_settings_are_the_defaults():
    method = from_config()
    assert method.losses == {
        "loss_lsh_head_l2": LossInfo("head", 7.0),
        "loss_lsh_head_hash": LossInfo("head", 7.0),
    }
    assert method.num_hashes == 4096
    assert isinstance(method.adapters["head"], nn.Conv2d)
    assert list(from_config(TERMS=["l2"]).losses) == ["loss_lsh_head_l2"]
    assert list(from_config(TAPS=["p3", "res5"], LOSS_WEIGHTS=[1.0, 2.0]).losses.values()) == [
        *[LossInfo("p3", 1.0)] * 2,
        *[LossInfo("res5", 2.0)] * 2,
    ]


def test_weights_multiply_both_terms():
    (student,), (teacher,) = maps(2, (2, 2)), maps(2, (2, 2), seed=1)
    features = {"p3": TapFeatures(student, teacher, None)}
    once, seven = lsh(), lsh()
    seven.weights["p3"] = 7.0
    assert values(seven(features)) == pytest.approx({k: 7 * v for k, v in values(once(features)).items()})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"TERMS": ["l2", "l1"]}, r"LSH\.TERMS = 'l1'.*'l2', 'hash'"),
        ({"TERMS": []}, r"LSH\.TERMS = \[\]: no term"),
        ({"TERMS": ["l2", "l2"]}, r"LSH\.TERMS.*twice"),
        ({"NUM_HASHES": 0}, r"LSH\.NUM_HASHES = 0"),
        ({"LOSS_WEIGHTS": [1.0, 1.0]}, r"LSH\.LOSS_WEIGHTS.*2 weights for 1 taps"),
        ({"TAPS": ["predictions"]}, r"LSH\.TAPS.*does not work on 'predictions'"),
        ({"TAPS": ["p3=head"]}, r"LSH\.TAPS.*does not work on 'p3=head'"),
    ],
)
def test_settings_that_cannot_work_are_named(keys, message):
    with pytest.raises(ConfigError, match=message):
        from_config(**keys)
