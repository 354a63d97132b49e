"""The Hadamard transform of every size that it claims, and the refusal of the others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.ops.hadamard import hadamard
from ssmquant.ops.hadamard.matrix import base_order, check_size, matrix
from ssmquant.tolerance import assert_float32

from . import naive
from .cases import Draw

SIZES = [1, 2, 4, 12, 20, 28, 36, 40, 44, 60, 768, 1536, 2560, 5120]


def columns(n: int, places: Tensor) -> Tensor:
    """Return the transform of some unit vectors, ``[len(places), n]``."""
    return hadamard(torch.nn.functional.one_hot(places, n).float())


@pytest.mark.parametrize("n", SIZES)
def test_is_the_kronecker_product_of_sylvester_and_paley(n: int) -> None:
    expected = torch.from_numpy(naive.hadamard_matrix(n)).T
    # The transform of 512 unit vectors at a time: for 5120 the whole would be a gigabyte of butterflies.
    for places in torch.arange(n).split(512):
        signs = (columns(n, places) * n**0.5).round()
        assert torch.equal(signs.to(torch.int8), expected[places])


@pytest.mark.parametrize("n", SIZES)
def test_entries_are_plus_and_minus_one_over_root_n(n: int) -> None:
    entries = columns(n, torch.arange(min(n, 256))).abs()
    assert_float32(entries, torch.full(entries.shape, n**-0.5, dtype=torch.float64), 1)
    assert (entries.max() - entries.min()) <= torch.finfo(torch.float32).eps * n**-0.5


@pytest.mark.parametrize("n", SIZES)
def test_is_orthonormal(n: int) -> None:
    """Exactly so in integers for the matrix; and lengths and angles of random vectors stay, at any size."""
    m = base_order(n)
    assert m is not None
    dense = matrix(m).to(torch.int64)
    assert torch.equal(dense @ dense.T, m * torch.eye(m, dtype=torch.int64))
    x = Draw(n).normal(5, n).double()
    y = hadamard(x)
    gram = x @ x.T
    # Float64 has no class of its own in the contract: the float32 one, with float64's eps.
    assert (y @ y.T - gram).norm() <= 4 * torch.finfo(torch.float64).eps * n**0.5 * gram.norm()


@pytest.mark.parametrize("n", [12, 20, 44, 60])
def test_transposed_is_another_transform(n: int) -> None:
    """Paley's first construction is skew: what is folded into weights has to know which side it stands on."""
    h = naive.hadamard_matrix(n)
    assert not np.array_equal(h, h.T)


def test_base_orders_are_the_smallest() -> None:
    found = {n: base_order(n) for n in (1, 64, 12, 24, 20, 40, 28, 56, 36, 44, 60, 104, 5120)}
    assert found == {1: 1, 64: 1, 12: 12, 24: 12, 20: 20, 40: 20, 28: 28, 56: 28, 36: 36, 44: 44, 60: 60,
                     104: 104, 5120: 20}  # fmt: skip


@pytest.mark.parametrize(
    ("n", "below", "above"),
    [(3, 2, 4), (10, 8, 12), (18, 16, 20), (52, 48, 56), (92, 88, 96), (130, 128, 132)],
)
def test_unsupported_sizes_are_refused_with_the_nearest(n: int, below: int, above: int) -> None:
    with pytest.raises(
        InputError, match=rf"hadamard: no transform of size {n} .*nearest sizes {below} and {above};"
    ):
        hadamard(torch.zeros(2, n))
    for near in range(below, above + 1):
        if near in (below, above):
            check_size(near)
        else:
            with pytest.raises(InputError, match=f"size {near} "):
                check_size(near)


def test_no_channels_are_refused() -> None:
    with pytest.raises(InputError, match="no transform of size 0"):
        hadamard(torch.zeros(2, 0))


def test_only_paleys_orders_have_a_dense_matrix() -> None:
    for n in (3, 16, 52, 92):
        with pytest.raises(InputError, match=f"hadamard: {n} is no order"):
            matrix(n)
