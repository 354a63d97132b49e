from __future__ import annotations

import numpy as np
import pytest
import torch

from ssmquant.errors import RecipeError
from ssmquant.formats import Codes, format_for
from ssmquant.formats.base import Sparse
from ssmquant.formats.lut import sparse_count
from ssmquant.scheme import Granularity, TensorScheme
from ssmquant.tolerance import assert_float32

HALVES = torch.tensor([[0, 0.5, 1, 1.5, 2, 3, 4, 8]], dtype=torch.float16)


def scheme(sparse: float | None = None, bits: int = 4) -> TensorScheme:
    return TensorScheme(kind="lut", bits=bits, granularity=Granularity.PER_CHANNEL, sparse=sparse)


def drawn(bits: int = 4, nnz: int | None = None) -> Codes:
    random = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (6, 10), generator=random, dtype=torch.int8)
    table = torch.randn(6, 2**bits, generator=random).sort(dim=1).values.to(torch.float16)
    if nnz is None:
        return Codes(codes, table)
    positions = torch.randperm(60, generator=random)[:nnz].sort().values.to(torch.int32)
    return Codes(codes, table, sparse=Sparse(torch.randn(nnz, generator=random).half(), positions))


def test_the_bytes_of_the_documented_example() -> None:
    sparse = Sparse(torch.tensor([0.25]).half(), torch.tensor([1], dtype=torch.int32))
    stored = format_for(scheme(5.0, 3)).pack(
        Codes(torch.tensor([[1, 7]], dtype=torch.int8), HALVES, sparse=sparse)
    )
    raw = {name: tensor.numpy().tobytes().hex(" ") for name, tensor in stored.items()}
    assert raw == {
        "packed": "71",
        "table": "00 00 00 38 00 3c 00 3e 00 40 00 42 00 44 00 48",
        "values": "00 34",
        "positions": "01 00 00 00",
    }
    assert format_for(scheme(5.0, 3)).dequantize(stored).tolist() == [[0.5, 8.25]]


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("nnz", [None, 3])
def test_looking_up_and_adding(bits: int, nnz: int | None) -> None:
    codes = drawn(bits, nnz)
    table = codes.scale.numpy().astype(np.float32)
    expected = np.stack([row[places] for row, places in zip(table, codes.codes.numpy(), strict=True)])
    for value, position in zip(*codes.sparse, strict=True) if codes.sparse else ():
        expected[position // 10, position % 10] += np.float32(value)
    lut = format_for(scheme(5.0 if nnz else None, bits))
    weight = lut.dequantize(lut.pack(codes))
    assert weight.dtype == torch.float32
    assert np.array_equal(weight.numpy(), expected)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("percent", [None, 5.0])
def test_what_is_packed_is_what_was_announced(bits: int, percent: float | None) -> None:
    """The shapes are known from the scheme alone: the plan counts their bytes, and loading makes room for them."""
    stored = format_for(scheme(percent, bits)).pack(drawn(bits, None if percent is None else 3))
    specs = format_for(scheme(percent, bits)).tensors((6, 10), scheme(percent, bits))
    assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == {
        n: tuple(s) for n, s in specs.items()
    }


def test_a_percentage_is_a_whole_number_of_weights() -> None:
    assert [sparse_count((1168, 256), percent) for percent in (0.05, 0.45)] == [150, 1346]
    assert sparse_count((2, 4), 0.05) == 0


def test_the_product_with_floats_and_with_codes() -> None:
    random = torch.Generator().manual_seed(1)
    x, bias = torch.randn(2, 3, 10, generator=random), torch.randn(6, generator=random)
    lut = format_for(scheme(5.0))
    stored = lut.pack(drawn(4, 3))
    weight = lut.dequantize(stored).double()
    assert_float32(lut.linear(stored, x, None, bias, None), x.double() @ weight.T + bias, k=11)
    codes = torch.randint(-127, 128, (2, 3, 10), generator=random, dtype=torch.int8)
    exact = (codes.double() * 0.03125) @ weight.T + bias
    assert_float32(lut.linear(stored, codes, torch.tensor([0.03125]), bias, None), exact, k=11)


def test_rows_of_odd_length_are_refused() -> None:
    with pytest.raises(RecipeError, match="two a byte, which rows of 7"):
        format_for(scheme()).tensors((4, 7), scheme())


def test_a_matrix_of_too_many_weights_has_no_sparse_part() -> None:
    shape = (2**20, 2**11)
    assert set(format_for(scheme()).tensors(shape, scheme())) == {"packed", "table"}
    with pytest.raises(RecipeError, match="more than sparse positions"):
        format_for(scheme(0.05)).tensors(shape, scheme(0.05))


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_tables_of_another_size_have_no_format(bits: int) -> None:
    with pytest.raises(RecipeError, match="lut per-channel of 3 or 4 bits"):
        format_for(scheme(bits=bits))


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"granularity": "per-tensor"}, "per-channel"),
        ({"granularity": "per-group", "group_size": 8}, "per-channel"),
        ({"range": "mse"}, "no range rule"),
        ({"symmetric": False}, "zero point"),
        ({"sparse": 0.0}, "greater than 0"),
        ({"sparse": 50.0}, "less than or equal to 10"),
        ({"kind": "int", "sparse": 0.45}, "sparse goes with a table"),
    ],
)
def test_schemes_without_a_meaning_are_refused(changed: dict[str, object], found: str) -> None:
    with pytest.raises(ValueError, match=found):
        TensorScheme.model_validate({"kind": "lut", "bits": 4, "granularity": "per-channel"} | changed)


def test_tables_are_named_with_their_sparse_part() -> None:
    assert [scheme(s).short() for s in (None, 0.45)] == [
        "lut4 per-channel",
        "lut4 per-channel + 0.45% float16",
    ]
