"""The progressive int4 format: its bytes on disk, the int8 weight that it is, and schemes that it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssmquant.errors import RecipeError
from ssmquant.formats import Codes, StoredTensor, format_for, restored
from ssmquant.formats.int4_progressive import largest_multiplier
from ssmquant.ops.int4_progressive_linear.reference import expand, join_grid, split_grid
from ssmquant.ops.int8_linear import int8_linear
from ssmquant.quantizers import gptq, round_to_nearest
from ssmquant.quantizers.progressive import integer_steps
from ssmquant.scheme import Granularity, TensorScheme


def scheme(group_size: int, **how: str) -> TensorScheme:
    how = {"scale_dtype": "uint8"} | how
    return TensorScheme(
        bits=4, granularity=Granularity.PER_GROUP, group_size=group_size, symmetric=False, **how
    )


PROGRESSIVE = format_for(scheme(4))
WEIGHT = torch.tensor(
    [
        # 15 steps of 0.1 from -0.8 on, and of 2 from -16 on: multipliers in the ratio of 1 to 20, so the first is 1.
        [0.7, -0.8, 0.1, 0.0, 14.0, -16.0, 6.0, 2.0],
        # 15 steps of 1 from zero on, with a zero point of -8; zeros have the range 1.
        [15.0, 0.0, 1.0, 7.0, 0.0, 0.0, 0.0, 0.0],
    ]
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_golden_bytes_of_a_weight() -> None:
    stored = PROGRESSIVE.pack(round_to_nearest(WEIGHT, scheme(4)))
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "packed": torch.uint8,
        "grid": torch.uint8,
        "scale": torch.float32,
    }
    assert stored["grid"].tolist() == [[0x81, 0x8F], [0x08, 0x01]]
    assert torch.allclose(stored["scale"], torch.tensor([2 / 15, 1 / 8]))
    assert stored["packed"].tolist() == [[0xA5, 0x01, 0x87, 0x13], [0x87, 0xF9, 0x88, 0x88]]


def test_what_the_bytes_stand_for() -> None:
    stored = {
        "packed": torch.tensor([[0xA5, 0x01, 0x87, 0x13]], dtype=torch.uint8),
        "grid": torch.tensor([[0x81, 0x6C]], dtype=torch.uint8),
        "scale": torch.tensor([0.125]),
    }
    expected = [
        [0.625, -0.75, 0.125, 0.0, 13.5, -9.0, 7.5, 4.5]
    ]  # codes 7, -8, 3, 1 about -2 in steps of 1.5
    assert PROGRESSIVE.dequantize(stored).tolist() == expected


@given(st.integers(-8, 7), st.integers(1, 15))
def test_a_byte_holds_multiplier_and_zero_point(zero_point: int, multiplier: int) -> None:
    one = torch.tensor(zero_point, dtype=torch.int8)
    found = split_grid(join_grid(torch.tensor(multiplier, dtype=torch.uint8), one))
    assert [int(part) for part in found] == [multiplier, zero_point]
    largest = int(largest_multiplier(one))
    reach = max(7 - zero_point, zero_point + 8)
    assert reach * largest <= 127 < reach * (largest + 1) or largest == 15


@pytest.mark.parametrize("quantizer", [round_to_nearest, lambda w, s: gptq(w, torch.eye(256), s)])
def test_what_is_stored_is_what_the_plan_counts(quantizer: object) -> None:
    assert callable(quantizer)
    weight, how = draw(48, 256), scheme(32)
    stored = format_for(how).pack(quantizer(weight, how))
    found = {name: StoredTensor(tuple(t.shape), t.dtype) for name, t in stored.items()}
    assert found == format_for(how).tensors((48, 256), how)
    assert sum(t.nbytes for t in stored.values()) == weight.numel() // 2 + weight.numel() // 32 + 4 * 48


@pytest.mark.parametrize(
    "scale", [torch.tensor([0.5]), torch.tensor([[0.5], [2.0], [0.1]])], ids=["tensor", "token"]
)
@pytest.mark.parametrize("scale_out", [None, torch.tensor([0.3])], ids=["float out", "codes out"])
def test_it_is_the_int8_layer_of_the_expanded_weight(scale: Tensor, scale_out: Tensor | None) -> None:
    stored = PROGRESSIVE.pack(round_to_nearest(WEIGHT, scheme(4)))
    x = torch.arange(-12, 12, dtype=torch.int8).view(3, 8)
    bias = torch.tensor([1.0, -1.0])
    weight = expand(stored["packed"], stored["grid"])
    y = PROGRESSIVE.linear(stored, x, scale, bias, scale_out)
    assert torch.equal(y, int8_linear(x, scale, weight, stored["scale"], bias, scale_out))


@given(st.integers(0, 2**16), st.floats(-30, 30))
def test_every_code_is_an_int8_code_and_near_the_weight(seed: int, exponent: float) -> None:
    """Rounding costs half a step, a range's end half a step, and a step that is a multiple 15 halves of a unit."""
    weight = (draw(5, 32, seed=seed) + 0.5) * draw(5, 32, seed=seed + 1).exp() * 2.0**exponent
    found = round_to_nearest(weight, scheme(8))
    assert found.multiplier is not None and found.zero_point is not None
    assert int(found.multiplier.min()) >= 1
    assert bool((found.multiplier <= largest_multiplier(found.zero_point)).all())
    unit, step = found.scale[:, None, None], found.steps[..., None]
    error = (restored(found, scheme(8)) - weight).abs().unflatten(1, (-1, 8))
    assert bool((error <= (step + 7.5 * unit) * (1 + 1e-5)).all())


def test_scales_next_to_zero_keep_a_reciprocal() -> None:
    tiny = torch.finfo(torch.float32).tiny
    unit, multiplier, zero_point = integer_steps(torch.zeros(1, 2), torch.full((1, 2), tiny))
    assert unit.item() == tiny
    assert (multiplier.tolist(), zero_point.tolist()) == ([[1, 1]], [[-8, -8]])


def test_codes_without_multipliers_are_refused() -> None:
    codes = Codes(torch.zeros(2, 8, dtype=torch.int8), torch.ones(2, 2))
    with pytest.raises(RecipeError, match="codes without multipliers are of a scheme with float32 scales"):
        PROGRESSIVE.pack(codes)


@pytest.mark.parametrize("shape", [(2, 7), (4, 190)])
def test_shapes_that_int4_refuses_are_refused_when_planned(shape: tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match=r"do not fill bytes of two|do not divide rows"):
        PROGRESSIVE.tensors(shape, scheme(128))


def test_it_holds_no_other_scheme() -> None:
    assert PROGRESSIVE.supports(scheme(4))
    assert not PROGRESSIVE.supports(scheme(4, scale_dtype="float32"))
    assert format_for(scheme(4, scale_dtype="float32")).name == "int4-asymmetric"
