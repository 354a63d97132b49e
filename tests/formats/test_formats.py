"""What formats store, what it stands for, and which op runs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import InputError, RecipeError
from ssmquant.formats import Codes, StoredTensor, format_for
from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.int4_linear.packing import unpack_int4
from ssmquant.ops.int8_linear import int8_linear
from ssmquant.scheme import Granularity, TensorScheme
from ssmquant.tolerance import assert_float32

OUT, IN = 5, 12
SCHEMES: dict[str, dict[str, Any]] = {
    "float32": {"kind": "float", "bits": 32},
    "float16": {"kind": "float", "bits": 16},
    "int8 per-tensor": {},
    "int8 per-channel": {"granularity": "per-channel"},
    "int4 per-group": {"bits": 4, "granularity": "per-group", "group_size": 4},
}
INTEGER = [name for name in SCHEMES if name.startswith("int")]


def scheme(name: str) -> TensorScheme:
    return TensorScheme(**SCHEMES[name])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def coded(weight: Tensor, scheme: TensorScheme) -> Codes:
    """Return round-to-nearest codes of a weight."""
    match scheme.granularity:
        case Granularity.PER_GROUP:
            groups = weight.unflatten(1, (-1, scheme.group_size))
            scale = numerics.scale_from_absmax(groups.abs().amax(-1), scheme.bits)
            return Codes(numerics.quantize(groups, scale[..., None], scheme.bits).flatten(1), scale)
        case Granularity.PER_CHANNEL:
            scale = numerics.scale_from_absmax(weight.abs().amax(1), scheme.bits)
        case _:
            scale = numerics.scale_from_absmax(weight.abs().amax().reshape(1), scheme.bits)
    return Codes(numerics.quantize(weight, scale[:, None], scheme.bits), scale)


def stored(weight: Tensor, scheme: TensorScheme) -> dict[str, Tensor]:
    if scheme.is_float:
        return {"weight": weight.to(torch.float16 if scheme.bits == 16 else torch.float32)}
    return format_for(scheme).pack(coded(weight, scheme))


@pytest.mark.parametrize(
    ("name", "format_name", "specs"),
    [
        ("float32", "dense", {"weight": StoredTensor((OUT, IN), torch.float32)}),
        ("float16", "dense", {"weight": StoredTensor((OUT, IN), torch.float16)}),
        (
            "int8 per-tensor",
            "int8",
            {"codes": StoredTensor((OUT, IN), torch.int8), "scale": StoredTensor((1,), torch.float32)},
        ),
        (
            "int8 per-channel",
            "int8",
            {"codes": StoredTensor((OUT, IN), torch.int8), "scale": StoredTensor((OUT,), torch.float32)},
        ),
        (
            "int4 per-group",
            "int4",
            {"packed": StoredTensor((OUT, 6), torch.uint8), "scale": StoredTensor((OUT, 3), torch.float32)},
        ),
    ],
)
def test_what_is_stored(name: str, format_name: str, specs: dict[str, StoredTensor]) -> None:
    found = format_for(scheme(name))
    assert found.name == format_name
    assert found.tensors((OUT, IN), scheme(name)) == specs
    tensors = stored(draw(OUT, IN), scheme(name))
    assert {name: StoredTensor(tuple(t.shape), t.dtype) for name, t in tensors.items()} == specs


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_stored_stands_for_the_weight(name: str) -> None:
    """Each element within half a step of its own row's or group's scale; floats within half of their last bit."""
    weight, how = draw(OUT, IN) * torch.logspace(-2, 2, OUT)[:, None], scheme(name)
    tensors = stored(weight, how)
    restored = format_for(how).dequantize(tensors)
    if how.is_float:
        assert torch.equal(restored, weight.to(restored.dtype))
        return
    scale = tensors["scale"]
    steps = scale.repeat_interleave(4, dim=1) if name == "int4 per-group" else scale[:, None].expand(-1, 1)
    limit = numerics.code_limit(how.bits)
    bound = steps * (0.5 + limit * 2.0**-21)  # float32 roundings, see test_numerics
    assert ((restored - weight).abs() <= bound).all()
    assert (restored - weight).abs().max() > steps.min() / 4


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, OUT)])
def test_float_inputs_meet_the_float_weight(name: str, bias: Tensor | None) -> None:
    how, x = scheme(name), draw(2, 3, IN, seed=1)
    tensors = stored(draw(OUT, IN), how)
    y = format_for(how).linear(tensors, x, None, bias, None)
    exact = x.double() @ format_for(how).dequantize(tensors).double().T + (
        0 if bias is None else bias.double()
    )
    assert_float32(y, exact, IN)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("scale_shape", [(1,), (2, 3, 1), (IN,)], ids=["tensor", "token", "channel"])
def test_code_inputs_stand_for_their_floats(name: str, scale_shape: tuple[int, ...]) -> None:
    """One scale along K or one a channel of K: the same product, by integers where it can be."""
    how = scheme(name)
    codes = draw(2, 3, IN, seed=2).mul(50).round().clamp(-127, 127).to(torch.int8)
    scale = draw(*scale_shape, seed=3).abs() + 0.1
    tensors, bias = stored(draw(OUT, IN), how), draw(OUT, seed=4)
    y = format_for(how).linear(tensors, codes, scale, bias, None)
    exact = (codes.double() * scale.double()) @ format_for(how).dequantize(tensors).double().T + bias.double()
    assert_float32(y, exact, IN)


@pytest.mark.parametrize(
    "scale", [torch.tensor([0.03]), torch.tensor([[0.03], [0.5]])], ids=["tensor", "token"]
)
def test_integers_are_multiplied_as_integers(scale: Tensor) -> None:
    codes = draw(2, IN, seed=2).mul(50).round().clamp(-127, 127).to(torch.int8)
    bias, scale_out = draw(OUT, seed=4), torch.tensor([0.1])
    row, group = scheme("int8 per-channel"), scheme("int4 per-group")
    for out in (None, scale_out):
        plain = stored(draw(OUT, IN), row)
        expected = int8_linear(codes, scale, plain["codes"], plain["scale"], bias, out)
        assert torch.equal(format_for(row).linear(plain, codes, scale, bias, out), expected)
        packed = stored(draw(OUT, IN), group)
        expected = int4_linear(codes, scale, packed["packed"], packed["scale"], bias, out)
        assert torch.equal(format_for(group).linear(packed, codes, scale, bias, out), expected)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("scale_out", [torch.tensor([0.05]), torch.linspace(0.01, 0.1, OUT)])
@pytest.mark.parametrize("scale_shape", [None, (1,), (IN,)], ids=["float", "tensor", "channel"])
def test_codes_out_are_the_quantised_floats(
    name: str, scale_out: Tensor, scale_shape: tuple[int, ...] | None
) -> None:
    how, tensors = scheme(name), stored(draw(OUT, IN), scheme(name))
    x = draw(2, IN, seed=5)
    scale = None if scale_shape is None else torch.full(scale_shape, 0.02)
    x = x if scale is None else numerics.quantize(x, scale)
    floats = format_for(how).linear(tensors, x, scale, None, None)
    codes = format_for(how).linear(tensors, x, scale, None, scale_out)
    assert torch.equal(codes, numerics.quantize(floats, scale_out))


@pytest.mark.parametrize("name", SCHEMES)
def test_a_double_input_is_computed_in_double(name: str) -> None:
    y = format_for(scheme(name)).linear(
        stored(draw(OUT, IN), scheme(name)), draw(3, IN).double(), None, None, None
    )
    assert y.dtype == torch.float64


def test_int4_codes_are_those_that_were_packed() -> None:
    found = coded(draw(OUT, IN), scheme("int4 per-group"))
    packed = format_for(scheme("int4 per-group")).pack(found)
    assert torch.equal(unpack_int4(packed["packed"]), found.codes)
    assert found.codes.abs().max() == 7


@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 6},
        {"bits": 4},
        {"bits": 4, "granularity": "per-channel"},
        {"symmetric": False},
        {"symmetric": False, "granularity": "per-channel"},
        {"granularity": "per-group", "group_size": 4},
        {"granularity": "per-token"},
        {"granularity": "per-token", "dynamic": True},
        {"granularity": "per-state-group"},
        {"granularity": "per-head-group", "head_groups": 2, "channel_groups": 2},
    ],
)
def test_schemes_that_no_format_holds_are_refused(fields: dict[str, Any]) -> None:
    asked = TensorScheme(**fields)
    with pytest.raises(
        RecipeError, match=r"no weight format for scheme '.*'; have float32, float16, int8"
    ) as refusal:
        format_for(asked)
    assert asked.short() in str(refusal.value)


@pytest.mark.parametrize("columns", [10, 2])
def test_groups_that_do_not_divide_are_refused(columns: int) -> None:
    with pytest.raises(
        RecipeError,
        match=f"groups of 4 codes do not divide rows of {columns}; the nearest group_size that does is",
    ):
        format_for(scheme("int4 per-group")).tensors((OUT, columns), scheme("int4 per-group"))


def test_rows_of_odd_length_have_no_bytes() -> None:
    odd = TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=3)
    with pytest.raises(RecipeError, match="rows of 9 codes do not fill bytes of two"):
        format_for(odd).tensors((OUT, 9), odd)


def test_codes_of_five_bits_are_not_packed() -> None:
    codes = Codes(torch.full((OUT, IN), 8, dtype=torch.int8), torch.ones(OUT, 3))
    with pytest.raises(InputError, match=r"codes must be in \[-8, 7\], found 8 to 8"):
        format_for(scheme("int4 per-group")).pack(codes)


def test_a_float_weight_has_no_codes() -> None:
    with pytest.raises(RecipeError, match="a float weight has no codes"):
        format_for(scheme("float32")).pack(Codes(torch.zeros(2, 2, dtype=torch.int8), torch.ones(1)))
