"""The mixed int4 and int8 format: what is stored, what it stands for, and which layers it refuses."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmquant.errors import InputError, RecipeError
from ssmquant.formats import Codes, format_for
from ssmquant.scheme import MixedPrecision, TensorScheme
from ssmquant.tolerance import assert_float32

ROWS, GROUPS, SIZE, OUTLIERS = 6, 3, 8, 5
ORDINARY = GROUPS * SIZE
COLUMNS = ORDINARY + OUTLIERS


def scheme(size: int = SIZE, outliers: int = OUTLIERS, **mixed: Any) -> TensorScheme:
    mixed = {"activation_bits": 8} | mixed
    return TensorScheme(
        bits=4, granularity="per-group", group_size=size, mixed=MixedPrecision(outliers=outliers, **mixed)
    )


def codes() -> Codes:
    random = torch.Generator().manual_seed(0)

    def integers(limit: int, *shape: int) -> Tensor:
        return torch.randint(-limit, limit + 1, shape, generator=random, dtype=torch.int8)

    return Codes(
        integers(7, ROWS, ORDINARY),
        torch.rand(ROWS, GROUPS, generator=random) + 0.1,
        torch.randperm(COLUMNS, generator=random).int(),
        Codes(integers(127, ROWS, OUTLIERS), torch.rand(ROWS, generator=random) + 0.1),
    )


def test_every_channel_is_back_in_its_place() -> None:
    given = codes()
    assert given.order is not None and given.outliers is not None
    expected = np.zeros((ROWS, COLUMNS), dtype=np.float32)
    for place, channel in enumerate(given.order.tolist()):
        for row in range(ROWS):
            if place < ORDINARY:
                code, scale = given.codes[row, place], given.scale[row, place // SIZE]
            else:
                code, scale = given.outliers.codes[row, place - ORDINARY], given.outliers.scale[row]
            expected[row, channel] = np.float32(code.item()) * scale.numpy()
    found = format_for(scheme())
    assert torch.equal(found.dequantize(found.pack(given)), torch.from_numpy(expected))


def test_what_is_packed_is_what_is_announced() -> None:
    found = format_for(scheme())
    specs = found.tensors((ROWS, COLUMNS), scheme())
    packed = found.pack(codes())
    assert {name: (tuple(t.shape), t.dtype) for name, t in packed.items()} == specs
    assert specs["packed"].shape == (ROWS, 12)  # two codes a byte


def test_int8_activations_lose_half_a_step_at_most() -> None:
    """So the layer is the product with the float weight, off by the steps of the activations alone."""
    found, given = format_for(scheme()), codes()
    stored = found.pack(given)
    x = torch.randn(7, COLUMNS, generator=torch.Generator().manual_seed(1))
    weight = found.dequantize(stored)
    exact = x.double() @ weight.double().T
    ordered = x[:, given.order]
    steps = (
        torch.cat([p.abs().amax(1, keepdim=True).expand_as(p) for p in ordered.split(SIZE, 1)], dim=1) / 127
    )
    bound = (steps.double() / 2) @ weight[:, given.order].double().abs().T
    error = (found.linear(stored, x, None, None, None) - exact).abs()
    assert (error <= bound * 1.001).all()
    assert (error > bound * 0.01).any()


def test_the_schemes_activation_codes_are_those_of_its_layer() -> None:
    """Whole numbers up to 7 are codes of four bits themselves, unless a part of the range is cut off."""
    given = codes()
    assert given.order is not None
    stored = format_for(scheme()).pack(given)
    ordered = torch.randint(-7, 8, (4, COLUMNS), generator=torch.Generator().manual_seed(2)).float()
    ordered[:, :ORDINARY:SIZE] = 7.0
    ordered[:, ORDINARY:] = 0.0
    x = torch.empty_like(ordered).index_copy_(1, given.order.long(), ordered)
    exact = x.double() @ format_for(scheme()).dequantize(stored).double().T

    def run(**mixed: Any) -> Tensor:
        return format_for(scheme(**mixed)).linear(stored, x, None, None, None)

    assert_float32(run(activation_bits=4), exact, GROUPS)
    for other in (
        {"activation_bits": 4, "activation_clip": 0.5},
        {"activation_bits": 3},
        {"activation_bits": 8},
    ):
        with pytest.raises(AssertionError, match="error ratio"):
            assert_float32(run(**other), exact, GROUPS)


@pytest.mark.parametrize(
    ("columns", "size", "outliers", "message"),
    [
        (300, 128, 128, "172 channels that 128 outliers leave of 300; use outliers of 44 or 172 or a group_size of 86"),
        (192, 128, 128, "the 64 channels that 128 outliers leave of 192; use outliers of 64 or a group_size of 64"),
        (128, 128, 128, "128 outliers leave of 128; layers of 128 input channels stay float (+keep=PATTERN)"),
        (48, 128, 128, "128 outliers leave of 48; layers of 48 input channels stay float (+keep=PATTERN)"),
        (160, 128, 128, "use outliers of 32 or a group_size of 32"),
        (12, 3, 3, "the 9 channels that 3 outliers leave of 12; use outliers of 6"),
    ],
)  # fmt: skip
def test_a_layer_that_does_not_fit_is_told_what_would(
    columns: int, size: int, outliers: int, message: str
) -> None:
    wanted = scheme(size, outliers)
    with pytest.raises(RecipeError, match=rf"groups of {size} do not divide .*{re.escape(message)}$"):
        format_for(wanted).tensors((4, columns), wanted)
    for count in re.findall(
        r"(?<=of |or )(\d+)(?= or|$)", message.partition("use outliers")[2].split(" or a ")[0]
    ):
        specs = format_for(wanted).tensors((4, columns), scheme(size, int(count)))
        assert specs["packed"].shape[1] * 2 + specs["outliers"].shape[1] == columns
    for smaller in re.findall(r"group_size of (\d+)", message):
        assert format_for(wanted).tensors((4, columns), scheme(int(smaller), outliers))


def test_codes_without_outliers_are_refused() -> None:
    plain = Codes(torch.zeros(ROWS, ORDINARY, dtype=torch.int8), torch.ones(ROWS, GROUPS))
    with pytest.raises(RecipeError, match="needs a quantizer that keeps outliers apart"):
        format_for(scheme()).pack(plain)


def test_activations_that_are_codes_already_are_refused() -> None:
    found = format_for(scheme())
    x = torch.zeros(2, COLUMNS, dtype=torch.int8)
    with pytest.raises(InputError, match="x must be floating point"):
        found.linear(found.pack(codes()), x, torch.ones(1), None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"granularity": "per-channel", "group_size": None}, "symmetric int4 codes per-group"),
        ({"bits": 8}, "symmetric int4 codes per-group"),
        ({"symmetric": False}, "symmetric int4 codes per-group"),
        ({"mixed": {}}, "activation_bits"),
        ({"mixed": {"activation_bits": 16}}, "less than or equal to 8"),
        ({"mixed": {"activation_bits": 4, "outliers": 0}}, "greater than or equal to 1"),
        ({"mixed": {"activation_bits": 4, "weight_clip": 1.1}}, "less than or equal to 1"),
        ({"mixed": {"activation_bits": 4, "clip": 0.9}}, "Extra inputs are not permitted"),
    ],
)
def test_a_scheme_without_meaning_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorScheme.model_validate(scheme().model_dump() | changes)


def test_a_scheme_survives_json_and_is_named() -> None:
    wanted = scheme(activation_bits=4, activation_clip=0.9)
    assert TensorScheme.model_validate_json(wanted.model_dump_json(exclude_defaults=True)) == wanted
    assert wanted.short() == "int4 per-group 8 + 5 int8, activations int4"
