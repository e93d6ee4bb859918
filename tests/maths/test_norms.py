"""The norms on the student's side: torch's own where nothing is padded, and blind to padding."""

from __future__ import annotations

import math
from typing import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgd_det.maths.norms import STUDENT_NORMS

N, C, H, W = 3, 6, 5, 7
SIZES = [(5, 4), (2, 7), (3, 3)]  # unpadded heights and widths of the three images


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def padding_mask() -> Tensor:
    """(N, 1, H, W), True in the top left corner of each image."""
    mask = torch.zeros(N, 1, H, W, dtype=torch.bool)
    for image, (height, width) in zip(mask, SIZES):
        image[:, :height, :width] = True
    return mask


def student_norm(kind: str, channels: int = C) -> nn.Module:
    """With a weight and a bias for each channel, so that a mix-up of channels shows."""
    norm = STUDENT_NORMS[kind](channels)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.5 * normal(7, channels))
        norm.bias.copy_(normal(8, channels))
    return norm


def group_normed(x: Tensor, norm: nn.Module) -> list[Tensor]:
    """torch's group norm of every image cropped to its unpadded part."""
    return [
        F.group_norm(image[None, :, :h, :w], norm.num_groups, norm.weight, norm.bias, norm.eps)[0]
        for image, (h, w) in zip(x, SIZES)
    ]


def batch_normed(x: Tensor, norm: nn.Module) -> list[Tensor]:
    """torch's batch norm of the unpadded positions of all images in one row."""
    crops = [image[:, :h, :w] for image, (h, w) in zip(x, SIZES)]
    line = torch.cat([crop.flatten(1) for crop in crops], 1)
    normed = F.batch_norm(line[None], None, None, norm.weight, norm.bias, True, 0.1, norm.eps)[0]
    parts = normed.split([h * w for h, w in SIZES], 1)
    return [part.reshape(C, h, w) for part, (h, w) in zip(parts, SIZES)]


CROPPED: dict[str, Callable[[Tensor, nn.Module], list[Tensor]]] = {
    "GN": group_normed,
    "BN": batch_normed,
}


def unpadded(x: Tensor) -> list[Tensor]:
    return [image[:, :h, :w] for image, (h, w) in zip(x, SIZES)]


@pytest.mark.parametrize("kind", ["GN", "BN"])
class TestMasked:
    def test_is_the_plain_norm_of_the_cropped_images(self, kind: str) -> None:
        norm, x = student_norm(kind), 2 * normal(0, N, C, H, W) + 1
        result = norm(x, padding_mask())
        assert result.shape == x.shape
        for part, expected in zip(unpadded(result), CROPPED[kind](x, norm)):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-6)

    def test_has_the_gradients_of_the_cropped_images(self, kind: str) -> None:
        norm, x = student_norm(kind), normal(0, N, C, H, W).requires_grad_()
        weights = unpadded(normal(1, N, C, H, W))

        def gradients(parts: list[Tensor]) -> tuple[Tensor, ...]:
            loss = sum((part.square() * weight).sum() for part, weight in zip(parts, weights))
            return torch.autograd.grad(loss, (x, norm.weight, norm.bias))

        got = gradients(unpadded(norm(x, padding_mask())))
        for gradient, expected in zip(got, gradients(CROPPED[kind](x, norm))):
            assert expected.abs().sum() > 0
            torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("content", [0.0, -40.0, 1e6])
    def test_does_not_see_what_is_in_the_padding(self, kind: str, content: float) -> None:
        mask, results = padding_mask(), []
        for filled in (1.0, content):
            norm = student_norm(kind)
            x = normal(0, N, C, H, W).where(mask, torch.tensor(filled)).requires_grad_()
            y = norm(x, mask)
            (y.square() * mask).sum().backward()
            results.append((*unpadded(y), x.grad, norm.weight.grad, norm.bias.grad))
        for first, second in zip(*results):
            assert torch.equal(first, second)

    @pytest.mark.parametrize("content", [math.inf, -math.inf, math.nan])
    def test_keeps_infinities_and_nan_in_the_padding_to_themselves(self, kind: str, content: float) -> None:
        mask, results = padding_mask(), []
        for filled in (0.0, content):
            norm = student_norm(kind)
            x = normal(0, N, C, H, W).where(mask, torch.tensor(filled)).requires_grad_()
            y = norm(x, mask)
            torch.where(mask, y, torch.zeros(())).square().sum().backward()
            results.append((*unpadded(y), x.grad, norm.weight.grad, norm.bias.grad))
        for first, second in zip(*results):
            assert torch.equal(first, second)

    def test_gives_the_padding_no_gradient(self, kind: str) -> None:
        mask, x = padding_mask(), normal(0, N, C, H, W).requires_grad_()
        (student_norm(kind)(x, mask).square() * mask).sum().backward()
        padding = ~mask.expand_as(x)
        assert (x.grad[padding] == 0).all()
        assert (x.grad[~padding] != 0).any()

    def test_with_nothing_padded_is_the_norm_without_mask(self, kind: str) -> None:
        norm, x = student_norm(kind), normal(0, N, C, H, W)
        result = norm(x, torch.ones(N, 1, H, W, dtype=torch.bool))
        torch.testing.assert_close(result, norm(x), rtol=0, atol=2e-6)

    def test_is_the_same_in_every_memory_layout(self, kind: str) -> None:
        norm, mask = student_norm(kind), padding_mask()
        x = normal(0, N, 2 * C, H, W)[:, ::2]
        expected = norm(x.contiguous(), mask)
        layouts = [
            x,
            x.contiguous(memory_format=torch.channels_last),
            x.transpose(2, 3).contiguous().transpose(2, 3),
            x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
        ]
        for layout in layouts:
            torch.testing.assert_close(norm(layout, mask), expected, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_of_large_half_precision_features_is_computed_in_float32(
        self, kind: str, dtype: torch.dtype
    ) -> None:
        # Squares of up to 4e8 a position; float16 ends at 65504.
        x = (normal(0, N, C, H, W).sigmoid() * 2e4).to(dtype)
        norm = student_norm(kind)
        result = norm(x, padding_mask())
        assert result.dtype == torch.float32
        for part, expected in zip(unpadded(result), CROPPED[kind](x.float(), norm)):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)

    def test_stays_in_double(self, kind: str) -> None:
        norm, x = student_norm(kind).double(), normal(0, N, C, H, W).double()
        result = norm(x, padding_mask())
        for part, expected in zip(unpadded(result), CROPPED[kind](x, norm)):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-12)

    def test_of_one_position_is_the_bias_like_that_of_any_constant(self, kind: str) -> None:
        mask = torch.zeros(1, 1, H, W, dtype=torch.bool)
        mask[..., 0, 0] = True
        norm = student_norm(kind, 1)
        result = norm(torch.full((1, 1, H, W), 9.0), mask)
        torch.testing.assert_close(result[0, 0, 0, 0], norm.bias[0], rtol=0, atol=0)


class TestUnmasked:
    @pytest.mark.parametrize("channels", [17, 24, 48, 64])
    def test_group_norm_is_torchs_own(self, channels: int) -> None:
        norm, x = student_norm("GN", channels), normal(0, N, channels, H, W)
        own = nn.GroupNorm(norm.num_groups, channels)
        own.load_state_dict(norm.state_dict())
        assert torch.equal(norm(x), own(x))

    def test_batch_norm_is_torchs_own_of_the_batch(self) -> None:
        norm, x = student_norm("BN"), normal(0, N, C, H, W)
        own = nn.BatchNorm2d(C, track_running_stats=False)
        own.load_state_dict(norm.state_dict())
        assert torch.equal(norm(x), own(x))

    @pytest.mark.parametrize("kind", ["GN", "BN"])
    def test_a_single_position_is_the_bias(self, kind: str) -> None:
        """The coarsest level of one small image has a single position."""
        norm = student_norm(kind, 1)
        result = norm(torch.full((1, 1, 1, 1), 9.0))
        torch.testing.assert_close(result[0, 0, 0, 0], norm.bias[0], rtol=0, atol=0)

    @pytest.mark.parametrize("kind", ["GN", "BN"])
    def test_gradient_reaches_weight_bias_and_features(self, kind: str) -> None:
        norm, x = student_norm(kind), normal(0, N, C, H, W).requires_grad_()
        (norm(x) * normal(1, N, C, H, W)).sum().backward()
        assert (norm.weight.grad != 0).all()
        assert (norm.bias.grad != 0).all()
        assert (x.grad != 0).any()


class TestStudentNorms:
    @pytest.mark.parametrize(
        ("channels", "groups"),
        [(64, 32), (256, 32), (32, 32), (48, 16), (24, 8), (12, 4), (17, 1), (1, 1)],
    )
    def test_group_norm_has_the_largest_power_of_two_up_to_32_that_divides(
        self, channels: int, groups: int
    ) -> None:
        assert STUDENT_NORMS["GN"](channels).num_groups == groups

    def test_none_hands_the_features_on_and_has_no_parameters(self) -> None:
        norm, x = STUDENT_NORMS[""](C), normal(0, N, C, H, W)
        assert norm(x) is x
        assert norm(x, padding_mask()) is x
        assert list(norm.parameters()) == []

    @pytest.mark.parametrize("kind", ["GN", "BN"])
    def test_keep_a_weight_of_one_a_bias_of_zero_and_nothing_else(self, kind: str) -> None:
        state = STUDENT_NORMS[kind](C).state_dict()
        assert {key: value.tolist() for key, value in state.items()} == {
            "weight": [1.0] * C,
            "bias": [0.0] * C,
        }

    @pytest.mark.parametrize("kind", ["GN", "BN"])
    @pytest.mark.parametrize("masked", [False, True])
    def test_do_the_same_in_eval_mode(self, kind: str, masked: bool) -> None:
        norm, x = student_norm(kind), normal(0, N, C, H, W)
        mask = padding_mask() if masked else None
        assert torch.equal(norm.train()(x, mask), norm.eval()(x, mask))
