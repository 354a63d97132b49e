"""The int4 format: the bytes of a weight on disk, half the size of int8, and shapes that it refuses."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssmquant.errors import InputError, RecipeError
from ssmquant.formats import Codes, StoredTensor, format_for
from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.int4_linear.packing import pack_int4
from ssmquant.quantizers import gptq, round_to_nearest
from ssmquant.scheme import Granularity, TensorScheme


def scheme(group_size: int) -> TensorScheme:
    return TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=group_size)


INT4 = format_for(scheme(4))
WEIGHT = torch.tensor(
    [
        [0.7, -0.3, 0.1, 0.0, 14.0, -14.0, 6.0, 2.0],
        [-1.0, 0.6, 0.25, 1.0, 0.0, 0.0, 0.0, 0.0],
    ]
)


def test_golden_bytes_of_a_weight() -> None:
    stored = INT4.pack(round_to_nearest(WEIGHT, scheme(4)))
    assert {name: tensor.dtype for name, tensor in stored.items()} == {
        "packed": torch.uint8,
        "scale": torch.float32,
    }
    assert stored["packed"].tolist() == [[0xD7, 0x01, 0x97, 0x13], [0x49, 0x72, 0x00, 0x00]]
    assert torch.equal(stored["scale"], torch.tensor([[0.7 / 7, 2.0], [1.0 / 7, 1.0 / 7]]))


def test_what_the_bytes_stand_for() -> None:
    stored = {
        "packed": torch.tensor([[0xD7, 0x01, 0x97, 0x13]], dtype=torch.uint8),
        "scale": torch.tensor([[0.125, 2.0]]),
    }
    expected = [[0.875, -0.375, 0.125, 0.0, 14.0, -14.0, 6.0, 2.0]]
    assert INT4.dequantize(stored).tolist() == expected


@pytest.mark.parametrize("quantizer", [round_to_nearest, lambda w, s: gptq(w, torch.eye(256), s)])
def test_codes_are_half_the_size_of_int8_and_a_scale_a_group(quantizer: object) -> None:
    assert callable(quantizer)
    weight, how = torch.randn(48, 256, generator=torch.Generator().manual_seed(0)), scheme(128)
    stored = format_for(how).pack(quantizer(weight, how))
    found = {name: StoredTensor(tuple(t.shape), t.dtype) for name, t in stored.items()}
    assert found == format_for(how).tensors((48, 256), how)
    assert stored["packed"].nbytes == weight.numel() // 2
    assert stored["scale"].nbytes == 4 * weight.numel() // 128  # 4.25 bits a weight in all
    step = stored["scale"].repeat_interleave(128, dim=1)
    assert ((format_for(how).dequantize(stored) - weight).abs() <= step * (0.5 + 2.0**-20)).all()


@pytest.mark.parametrize(
    "scale", [torch.tensor([0.5]), torch.tensor([[0.5], [2.0], [0.1]])], ids=["tensor", "token"]
)
@pytest.mark.parametrize("scale_out", [None, torch.tensor([0.3])], ids=["float out", "codes out"])
def test_codes_that_share_a_scale_meet_in_the_op(scale: Tensor, scale_out: Tensor | None) -> None:
    stored = INT4.pack(round_to_nearest(WEIGHT, scheme(4)))
    x = torch.arange(-12, 12, dtype=torch.int8).view(3, 8)
    bias = torch.tensor([1.0, -1.0])
    y = INT4.linear(stored, x, scale, bias, scale_out)
    assert torch.equal(y, int4_linear(x, scale, stored["packed"], stored["scale"], bias, scale_out))


@pytest.mark.parametrize("shape", [(2, 7), (2, 1)])
def test_odd_rows_are_refused_when_planned(shape: tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match=f"rows of {shape[1]} codes do not fill bytes of two; use int8"):
        INT4.tensors(shape, scheme(shape[1]))


def test_groups_that_do_not_divide_a_row_are_refused_when_planned() -> None:
    with pytest.raises(
        RecipeError,
        match="groups of 128 codes do not divide rows of 192; the nearest group_size that does is 96",
    ):
        INT4.tensors((4, 192), scheme(128))


@pytest.mark.parametrize(("code", "columns"), [(8, 4), (-9, 4), (0, 3)])
def test_codes_that_do_not_fit_are_refused(code: int, columns: int) -> None:
    codes = torch.full((2, columns), code, dtype=torch.int8)
    with pytest.raises(InputError, match="int4 packing"):
        INT4.pack(Codes(codes, torch.ones(2, 1)))


@pytest.mark.parametrize(
    "other",
    [
        TensorScheme(bits=8, granularity=Granularity.PER_GROUP, group_size=4),
        TensorScheme(bits=3, granularity=Granularity.PER_GROUP, group_size=4),
        TensorScheme(bits=4, granularity=Granularity.PER_CHANNEL),
        TensorScheme(bits=4, granularity=Granularity.PER_TENSOR),
        TensorScheme(kind="float", bits=16),
    ],
    ids=TensorScheme.short,
)
def test_it_holds_no_other_scheme(other: TensorScheme) -> None:
    assert INT4.supports(scheme(4))
    assert not INT4.supports(other)


def test_the_page_about_it_says_what_is_so() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "int4.md"
    examples = doctest.testfile(str(page), module_relative=False)
    assert (examples.failed, examples.attempted) == (0, 16)
    rows = re.findall(r"^\| ([-\d, ]+) \| `([0-9a-f ]+)` \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 4
    for codes, golden in rows:
        packed = pack_int4(torch.tensor([[int(code) for code in codes.split(",")]], dtype=torch.int8))
        assert packed.numpy().tobytes().hex(" ") == golden
