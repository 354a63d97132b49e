"""What `int8_linear` promises beyond its tolerance class: every bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssmquant.ops.int8_linear import int8_linear
from ssmquant.ops.int8_linear.reference import int_matmul

from . import naive
from .cases import SUITES, Case, Draw

ONE = torch.ones(1)


@pytest.mark.parametrize("case", SUITES["int8_linear"].cases, ids=lambda case: case.name)
def test_it_is_that_of_the_written_order_of_roundings(case: Case) -> None:
    args = case.args()
    assert torch.equal(int8_linear(*args), naive.int8_linear(*args))


@pytest.mark.parametrize("k", [1, 1040, 1041, 2080, 5120])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_at_the_limit_are_exact(k: int, sign: int) -> None:
    x, w = torch.full((2, k), 127, dtype=torch.int8), torch.full((3, k), 127 * sign, dtype=torch.int8)
    w[:, -1] = 1  # an odd sum, which float32 does not hold above 2**24
    expected = sign * 127 * 127 * (k - 1) + 127
    assert int_matmul(x, w).dtype == torch.int32
    assert int_matmul(x, w).tolist() == [[expected] * 3] * 2


def test_a_plain_float_product_would_not_do() -> None:
    """At K = 5120 float32 sums of the products are inexact, before and after their rounding to float32."""
    draw = Draw(0)
    # Codes from 64 to 127: sums near 2**25.6, whose float32 neighbours are 4 apart.
    x, w = draw.codes(32, 5120).abs() | 64, draw.codes(32, 5120).abs() | 64
    exact = torch.from_numpy(naive.integer_matmul(x, w))
    plain = x.float() @ w.float().T
    assert (plain.long() != exact).any()
    assert (plain != exact.float()).any()
    assert torch.equal(int_matmul(x, w).long(), exact)
    assert torch.equal(int8_linear(x, ONE, w, ONE, None, None), exact.float())


def test_a_scale_a_token_scales_its_token_only() -> None:
    draw = Draw(1)
    x, w = draw.codes(3, 2, 9), draw.codes(5, 9)
    scales = torch.tensor([0.25, 4.0, 1.0, 0.5, 2.0, 8.0]).view(3, 2, 1)
    y = int8_linear(x, scales, w, ONE, None, None)
    assert torch.equal(y, int8_linear(x, ONE, w, ONE, None, None) * scales)  # powers of two: exact


@pytest.mark.parametrize("shape", [(0, 7), (2, 0, 7)])
@pytest.mark.parametrize("scale_out", [None, ONE])
def test_no_tokens(shape: tuple[int, ...], scale_out: torch.Tensor | None) -> None:
    y = int8_linear(torch.zeros(shape, dtype=torch.int8), ONE, Draw(0).codes(3, 7), ONE, None, scale_out)
    assert y.shape == (*shape[:-1], 3)
    assert y.dtype == (torch.float32 if scale_out is None else torch.int8)


def test_int_matmul_takes_any_shape() -> None:
    draw = Draw(2)
    x, w = draw.codes(2, 3, 1100), draw.codes(4, 1100)
    assert np.array_equal(int_matmul(x, w).numpy(), naive.integer_matmul(x, w))
    assert np.array_equal(int_matmul(x[0, 0], w).numpy(), naive.integer_matmul(x[0, 0], w))
