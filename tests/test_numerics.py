"""Rounding and clamping, as laws over all floats and as numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ssmquant.numerics import (
    code_limit,
    dequantize,
    per_token_scale,
    quantize,
    round_clamp,
    scale_from_absmax,
)

FLOAT32 = torch.finfo(torch.float32)
U = 2.0**-24  # largest relative error of one float32 rounding

bits = st.integers(2, 8)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
scales = st.floats(FLOAT32.tiny, 2.0**100, width=32)


def scalar(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float32)


def code(x: float, scale: float, width: int = 8) -> int:
    return int(quantize(scalar(x), scalar(scale), width))


@pytest.mark.parametrize(("width", "limit"), [(2, 1), (3, 3), (4, 7), (8, 127)])
def test_code_limit(width: int, limit: int) -> None:
    assert code_limit(width) == limit


def test_half_goes_to_even() -> None:
    middles = torch.arange(-130, 130) + 0.5
    expected = [
        max(-127, min(127, round(middle))) for middle in middles.tolist()
    ]  # Python rounds half to even
    assert round_clamp(middles).tolist() == expected
    assert round_clamp(torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])).tolist() == [0, 2, 2, 0, -2, -2]


def test_next_to_the_middle_goes_to_the_nearest() -> None:
    middles = torch.arange(-126, 126) + 0.5
    below = torch.nextafter(middles, torch.tensor(-math.inf))
    above = torch.nextafter(middles, torch.tensor(math.inf))
    assert torch.equal(round_clamp(below), (middles - 0.5).to(torch.int8))
    assert torch.equal(round_clamp(above), (middles + 0.5).to(torch.int8))


@pytest.mark.parametrize("width", range(2, 9))
def test_the_range_is_symmetric(width: int) -> None:
    limit = code_limit(width)
    far = torch.tensor([1e30, limit + 0.5, limit + 0.49, float(limit), math.inf])
    assert round_clamp(far, width).tolist() == [limit] * 5
    assert round_clamp(-far, width).tolist() == [-limit] * 5


def test_the_argument_is_left_alone() -> None:
    x = torch.tensor([300.0, 0.4])
    round_clamp(x)
    quantize(x, torch.tensor([0.1]))
    assert x.tolist() == pytest.approx([300.0, 0.4])


@given(scale=scales, part=st.floats(-1, 1), width=bits)
@example(scale=1.0, part=0.5 / 127, width=8)
@example(scale=float(np.float32(0.1)), part=1.0, width=8)
def test_round_trip_is_within_half_a_step(scale: float, part: float, width: int) -> None:
    """|x| <= limit * scale.

    Three float32 roundings meet a number of at most ``limit`` steps: that of the reciprocal, of the product by it, and
    of the product back. Before them the distance is at most half a step.
    """
    limit = code_limit(width)
    x = scalar(part * limit * scale)
    assume(x.isfinite() and abs(x.double()) <= limit * scale)
    restored = dequantize(quantize(x, scalar(scale), width), scalar(scale))
    bound = scale * (0.5 + limit * ((1 + U) ** 3 - 1))
    assert abs(restored.double() - x.double()) <= bound


@given(scale=scales, whole=st.integers(-127, 127))
def test_codes_survive_the_way_back_and_forth(scale: float, whole: int) -> None:
    codes = torch.tensor([whole], dtype=torch.int8)
    assert quantize(dequantize(codes, scalar(scale)), scalar(scale)) == codes


@given(x=floats, scale=scales, width=bits)
def test_symmetry(x: float, scale: float, width: int) -> None:
    assert code(-x, scale, width) == -code(x, scale, width)


@given(x=floats, y=floats, scale=scales, width=bits)
def test_monotony(x: float, y: float, scale: float, width: int) -> None:
    low, high = sorted((x, y))
    assert code(low, scale, width) <= code(high, scale, width)


@given(x=floats, scale=scales, width=bits)
def test_limits(x: float, scale: float, width: int) -> None:
    assert abs(code(x, scale, width)) <= code_limit(width)


def test_the_reciprocal_is_rounded_first() -> None:
    """A kernel may keep ``1 / scale`` and multiply: some codes then differ from those of a division, and are right."""
    scale = torch.tensor([0.0295])
    x = (torch.arange(-126, 126) + 0.5) * scale
    expected = torch.from_numpy(np.rint(x.numpy() * (np.float32(1) / scale.numpy())))
    assert torch.equal(quantize(x, scale), expected.to(torch.int8))
    assert not torch.equal(expected, (x / scale).round())


def test_half_precision_is_quantised_in_float32() -> None:
    x = torch.tensor([0.1, -3.3]).half()
    scale = torch.tensor([0.026])
    assert torch.equal(quantize(x, scale), quantize(x.float(), scale))


def test_scales_broadcast() -> None:
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0]])
    assert quantize(x, torch.tensor([0.5, 0.25])).tolist() == [[2, 4], [4, 8]]
    assert quantize(x, torch.tensor([[0.5], [0.25]])).tolist() == [[2, 2], [8, 8]]


def test_a_float_without_scale_is_dequantised_already() -> None:
    x = torch.randn(3).double()
    assert dequantize(x, None) is x


@given(absmax=st.floats(0, 1e300), width=bits)
@example(absmax=0.0, width=8)
@example(absmax=1e-45, width=8)  # the smallest float32 above zero
@example(absmax=1e-38, width=8)
@example(absmax=FLOAT32.max, width=2)
@example(absmax=math.inf, width=8)
def test_a_scale_and_its_reciprocal_are_normal_numbers(absmax: float, width: int) -> None:
    scale = scale_from_absmax(torch.tensor([absmax], dtype=torch.float64), width)
    assert scale.dtype == torch.float32
    for number in (scale.item(), (1.0 / scale).item()):
        assert FLOAT32.tiny <= number <= FLOAT32.max


@given(absmax=st.floats(FLOAT32.tiny * 127, 2.0**126, width=32), width=bits)
def test_the_largest_code_stands_for_the_largest_magnitude(absmax: float, width: int) -> None:
    limit = code_limit(width)
    scale = scale_from_absmax(scalar(absmax), width)
    assert abs(scale.item() * limit - absmax) <= absmax * U
    assert code(absmax, scale.item(), width) == limit
    assert code(-absmax, scale.item(), width) == -limit


def test_nothing_but_zeros_has_the_range_one() -> None:
    assert scale_from_absmax(torch.zeros(2)).tolist() == [float(np.float32(1 / 127))] * 2
    assert scale_from_absmax(torch.tensor([0.0, 254.0]), 8).tolist()[1] == 2.0


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 1e-38])
def test_tiny_values_have_codes_of_their_sign(tiny: float) -> None:
    x = torch.tensor([[tiny, -tiny, 0.0]])
    found = quantize(x, per_token_scale(x))
    assert found[0, 2] == 0
    assert 0 <= found[0, 0] == -found[0, 1]


def test_per_token_scales_are_those_of_each_row() -> None:
    x = torch.tensor([[[1.0, -254.0], [0.0, 0.0]], [[12.7, 3.0], [-6.35, 0.1]]])
    scale = per_token_scale(x)
    assert scale.shape == (2, 2, 1)
    assert scale.flatten().tolist() == pytest.approx([2.0, 1 / 127, 0.1, 0.05], rel=2 * U)
    assert per_token_scale(torch.tensor([[14.0]]), 4).item() == 2.0
