from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmquant.errors import InputError, SsmquantError
from ssmquant.formats import Codes, restored
from ssmquant.quantizers import kmeans
from ssmquant.scheme import Granularity, TensorScheme

ROWS, COLUMNS = 40, 250  # of 10,000 weights, 5 are sensitive and 45 exact at 0.45 %


def scheme(sparse: float | None = None, bits: int = 4) -> TensorScheme:
    return TensorScheme(kind="lut", bits=bits, granularity=Granularity.PER_CHANNEL, sparse=sparse)


def drawn() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(3)
    weight = torch.randn(ROWS, COLUMNS, generator=random) * 0.1
    return weight, torch.randn(ROWS, COLUMNS, generator=random).exp().double()


def weighted_error(weight: Tensor, fisher: Tensor, codes: Codes, scheme: TensorScheme) -> float:
    return float((fisher * (weight - restored(codes, scheme)).double() ** 2).sum())


@pytest.mark.parametrize("bits", [3, 4])
def test_every_code_is_that_of_the_nearest_value(bits: int) -> None:
    weight, fisher = drawn()
    codes, table, *_ = kmeans(weight, fisher, scheme(bits=bits))
    assert table.shape == (ROWS, 2**bits) and table.dtype == torch.float16
    distance = (weight.double()[:, :, None] - table.double()[:, None, :]).abs()
    assert torch.equal(distance.gather(2, codes.long()[..., None])[..., 0], distance.amin(dim=2))
    assert all(len(row.unique()) == 2**bits for row in codes)


def test_of_two_values_as_near_the_lower_is_taken() -> None:
    # Two heavy values at -1 and 1 pin a centre each; the others are copies of them but for one light zero.
    row = torch.tensor([[-1.0] * 20 + [1.0] * 19 + [0.0]])
    fisher = torch.ones(1, 40)
    fisher[0, -1] = 0.0
    codes, table, *_ = kmeans(row, fisher, scheme(bits=3))
    chosen = float(table[0, int(codes[0, -1])])
    assert chosen == -1.0


def test_what_matters_more_is_met_better() -> None:
    weight, fisher = drawn()
    plain = weighted_error(weight, fisher, kmeans(weight, torch.ones_like(fisher), scheme()), scheme())
    assert weighted_error(weight, fisher, kmeans(weight, fisher, scheme()), scheme()) < 0.9 * plain


def test_the_sensitive_and_then_the_largest_weights_are_exact() -> None:
    weight, fisher = drawn()
    codes = kmeans(weight, fisher, scheme(0.45))
    assert codes.sparse
    positions = codes.sparse.positions.long()
    assert positions.dtype == torch.int64 and torch.equal(positions, positions.unique())
    sensitive = set(fisher.flatten().topk(5).indices.tolist())
    by_size = weight.abs().flatten().argsort(descending=True).tolist()
    outliers = [place for place in by_size if place not in sensitive][:40]
    assert set(positions.tolist()) == sensitive | set(outliers)
    exact = weight.flatten()[positions]
    got = restored(codes, scheme(0.45)).flatten()[positions]
    # The rest, at most as large as the weight, is what is rounded to float16.
    assert bool(((got - exact).abs() <= exact.abs() * torch.finfo(torch.float16).eps / 2).all())


def test_a_small_sparse_part_is_all_sensitive() -> None:
    weight, fisher = drawn()
    codes = kmeans(weight, fisher, scheme(0.03))
    assert codes.sparse
    assert set(codes.sparse.positions.tolist()) == set(fisher.flatten().topk(3).indices.tolist())


def test_of_equally_sensitive_weights_the_first_are_exact() -> None:
    weight, fisher = drawn()
    codes = kmeans(weight, torch.ones_like(fisher).index_fill(1, torch.tensor([1]), 2.0), scheme(0.03))
    assert codes.sparse
    assert codes.sparse.positions.tolist() == [1, COLUMNS + 1, 2 * COLUMNS + 1]


def test_exact_weights_have_no_say_in_the_tables() -> None:
    weight, fisher = drawn()
    weight[4, 7] = 3.0
    moved = weight.clone()
    moved[4, 7] = 5.0
    a, b = (kmeans(w, fisher, scheme(0.45)) for w in (weight, moved))
    torch.testing.assert_close(
        a.scale, b.scale, rtol=5e-3, atol=1e-3
    )  # cells are cut by the gaps, which differ
    assert a.scale.max() < 1.0
    errors = [weighted_error(weight, fisher, kmeans(weight, fisher, s), s) for s in (scheme(), scheme(0.45))]
    assert errors[1] < errors[0]


def test_the_unit_of_the_fisher_information_does_not_matter() -> None:
    weight, fisher = drawn()
    a, b = (kmeans(weight, fisher * factor, scheme(0.45)) for factor in (1.0, 2.0**-30))
    assert torch.equal(a.codes, b.codes) and torch.equal(a.scale, b.scale)


def test_a_weight_and_its_transposed_view_are_no_different() -> None:
    weight, fisher = drawn()
    a = kmeans(weight, fisher, scheme(0.45))
    b = kmeans(weight.T.contiguous().T, fisher.T.contiguous().T, scheme(0.45))
    assert torch.equal(a.codes, b.codes) and torch.equal(a.scale, b.scale)


@pytest.mark.parametrize("extreme", [7e4, float("nan"), float("inf")])
def test_weights_beyond_float16_are_refused(extreme: float) -> None:
    weight, fisher = drawn()
    weight[1, 1] = extreme
    with pytest.raises(SsmquantError, match="beyond the float16 tables"):
        kmeans(weight, fisher, scheme())


def test_another_weights_fisher_information_is_refused() -> None:
    weight, fisher = drawn()
    with pytest.raises(InputError, match=r"must have the weight's shape \[40, 250\], got \[250, 40\]"):
        kmeans(weight, fisher.T, scheme())
