"""The C++ linear layers and embedding: bit for bit the reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmquant.ops import use_backend
from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.int4_linear.packing import pack_int4
from ssmquant.ops.int4_progressive_linear import int4_progressive_linear
from ssmquant.ops.int4_progressive_linear.reference import join_grid, largest_multiplier
from ssmquant.ops.int8_embedding import int8_embedding
from ssmquant.ops.int8_linear import int8_linear
from ssmquant.ops.registry import Op

from .cases import Draw

native = pytest.importorskip("ssmquant._native", reason="the compiled extension is not built")


def both(op: Op, *args: Tensor | None) -> tuple[Tensor, Tensor]:
    with use_backend("cpu"):
        fast = op(*args)
    with use_backend("reference"):
        return fast, op(*args)


def assert_same(op: Op, *args: Tensor | None) -> None:
    fast, exact = both(op, *args)
    assert fast.dtype == exact.dtype
    assert torch.equal(fast, exact)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 14, 15, 33, 300])
@pytest.mark.parametrize(("n", "k"), [(1, 2), (17, 34), (64, 64), (95, 261), (33, 1040)])
def test_int8_linear(rows: int, n: int, k: int) -> None:
    draw = Draw(rows * n * k)
    x, weight = draw.codes(rows, k), draw.codes(n, k)
    x[0], weight[0] = 127, -127
    for x_scale in (draw.scale(1), draw.scale(rows, 1)):
        for bias in (None, draw.normal(n)):
            for scale_out in (None, draw.scale(1, absmax=8.0 * k**0.5), draw.scale(n, absmax=8.0 * k**0.5)):
                assert_same(int8_linear, x, x_scale, weight, draw.scale(n, absmax=1.0), bias, scale_out)
    assert_same(int8_linear, x, draw.scale(1), weight, draw.scale(1, absmax=1.0), None, None)


@pytest.mark.parametrize("rows", [1, 2, 7, 15, 33, 140])
@pytest.mark.parametrize(
    ("n", "k", "groups"), [(1, 2, 1), (17, 34, 17), (33, 42, 6), (95, 96, 3), (70, 1280, 10), (9, 6000, 1)]
)
def test_int4_linear(rows: int, n: int, k: int, groups: int) -> None:
    draw = Draw(rows * n * k)
    x, codes = draw.codes(rows, k), draw.codes(n, k) >> 4
    x[0], codes[0] = -127, -8
    scale = draw.scale(n, groups, absmax=1.0)
    for x_scale in (draw.scale(1), draw.scale(rows, 1)):
        for bias in (None, draw.normal(n)):
            for scale_out in (None, draw.scale(1, absmax=0.5 * k**0.5), draw.scale(n, absmax=0.5 * k**0.5)):
                assert_same(int4_linear, x, x_scale, pack_int4(codes), scale, bias, scale_out)


def drawn_grid(draw: Draw, *shape: int) -> Tensor:
    zero_point = (draw.ids(*shape, below=16) - 8).to(torch.int8)
    multiplier = (1 + draw.ids(*shape, below=15)).minimum(largest_multiplier(zero_point))
    return join_grid(multiplier.to(torch.uint8), zero_point)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 15, 33, 140])
@pytest.mark.parametrize(
    ("n", "k", "groups"),
    [(1, 8, 1), (17, 40, 5), (95, 96, 3), (33, 48, 3), (70, 1280, 40), (64, 1024, 16), (9, 6016, 1)],
)
def test_int4_progressive_linear(rows: int, n: int, k: int, groups: int) -> None:
    draw = Draw(rows * n * k)
    x, codes, grid = draw.codes(rows, k), draw.codes(n, k) >> 4, drawn_grid(draw, n, groups)
    x[0], codes[0], grid[0] = -127, -8, 0x8F  # steps of 15, no zero point
    for x_scale in (draw.scale(1), draw.scale(rows, 1)):
        for bias in (None, draw.normal(n)):
            for scale_out in (None, draw.scale(1, absmax=8.0 * k**0.5), draw.scale(n, absmax=8.0 * k**0.5)):
                args = x, x_scale, pack_int4(codes), grid, draw.scale(n, absmax=1.0), bias, scale_out
                assert_same(int4_progressive_linear, *args)


def test_arguments_need_not_be_contiguous() -> None:
    draw = Draw(1)
    x, weight, spread = draw.codes(48, 5).T, draw.codes(48, 9).T, draw.normal(18)[::2]
    assert_same(int8_linear, x, draw.scale(5, 1), weight, draw.scale(18)[::2], spread, draw.scale(18)[::2])
    packed = draw.ids(24, 9, below=256).to(torch.uint8).T
    assert_same(int4_linear, x, draw.scale(5, 1), packed, draw.scale(3, 9).T, spread, None)
    grid, scale = drawn_grid(draw, 9, 3).T.contiguous().T, draw.scale(18)[::2]
    assert_same(int4_progressive_linear, x, draw.scale(5, 1), packed, grid, scale, spread, None)
    assert_same(int8_embedding, draw.ids(4, 6, below=9).T, weight, draw.scale(18)[::2])


def test_a_changed_weight_is_seen() -> None:
    draw = Draw(2)
    x, weight = draw.codes(3, 64), draw.codes(40, 64)
    assert_same(int8_linear, x, draw.scale(1), weight, draw.scale(1), None, None)
    weight.data.neg_()
    assert_same(int8_linear, x, draw.scale(1), weight, draw.scale(1), None, None)


@pytest.mark.parametrize("ids", [[0, 40], [-1]])
def test_ids_outside_of_the_table_are_refused(ids: list[int]) -> None:
    draw = Draw(3)
    with use_backend("cpu"), pytest.raises(IndexError):
        int8_embedding(torch.tensor(ids), draw.codes(40, 8), draw.scale(1))


def test_too_many_groups_go_to_the_reference() -> None:
    k = 2 * 16385
    args = torch.ones(1, k, dtype=torch.int8), torch.ones(1), torch.full((1, k // 2), 0x11, dtype=torch.uint8)
    backend, reasons = int4_linear.chosen(*args, torch.ones(1, k // 2), None, None)
    assert backend == "reference"
    assert "16385 groups" in reasons[0]


def test_groups_of_odd_size_go_to_the_reference() -> None:
    draw = Draw(4)
    packed = draw.ids(3, 6, below=256).to(torch.uint8)
    args = draw.codes(2, 12), draw.scale(1), packed, drawn_grid(draw, 3, 1), draw.scale(3), None, None
    backend, reasons = int4_progressive_linear.chosen(*args)
    assert backend == "reference"
    assert "groups of 12" in reasons[0]
