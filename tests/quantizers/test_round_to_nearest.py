"""Round to nearest: scales from absmax a tensor, row or group, and the nearest code under them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmquant.errors import RecipeError, SsmquantError
from ssmquant.quantizers import QUANTIZERS, gptq, round_to_nearest
from ssmquant.quantizers.round_to_nearest import weight_scale
from ssmquant.scheme import Granularity, TensorScheme

from . import naive

TENSOR = TensorScheme(granularity=Granularity.PER_TENSOR)
ROW = TensorScheme(granularity=Granularity.PER_CHANNEL)
GROUP = TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=3)
SCHEMES = [TENSOR, ROW, GROUP]


def weight() -> Tensor:
    """Return rows of very different size, with one group of zeros."""
    values = (
        torch.randn(4, 12, generator=torch.Generator().manual_seed(0)) * torch.logspace(-2, 1, 4)[:, None]
    )
    values[1, 3:6] = 0.0
    return values


def test_scales_are_the_largest_magnitudes_over_the_largest_code() -> None:
    w = torch.tensor([[1.0, -2.0, 0.5, 0.0, 0.0, 0.0], [-7.0, 3.0, 1.0, 0.25, 14.0, -3.0]])
    assert torch.equal(weight_scale(w, TENSOR), torch.tensor([14 / 127]))
    assert torch.equal(weight_scale(w, ROW), torch.tensor([2 / 127, 14 / 127]))
    assert torch.equal(weight_scale(w, GROUP), torch.tensor([[2 / 7, 1 / 7], [1.0, 2.0]]))  # zeros: range 1


@pytest.mark.parametrize("scheme", SCHEMES, ids=TensorScheme.short)
def test_codes_are_the_nearest(scheme: TensorScheme) -> None:
    w, found = weight(), round_to_nearest(weight(), scheme)
    wide = found.scale if found.scale.dim() == 2 else found.scale[:, None]
    step = wide.repeat_interleave(12 // wide.shape[1], dim=1).expand(4, 12)
    for row in range(4):
        for column in range(12):
            at = (slice(row, row + 1), slice(column, column + 1))
            expected = naive.codes(w[at].numpy(), step[at].numpy(), scheme.bits)
            assert found.codes[row, column] == expected[0, 0]
    assert found.codes.dtype == torch.int8
    assert found.codes.abs().max() == 2 ** (scheme.bits - 1) - 1


def test_ties_go_to_the_even_code() -> None:
    w = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5]])
    assert round_to_nearest(w, TensorScheme(bits=4)).codes.tolist() == [[7, 0, 2, 2, 0, -2]]


def test_every_group_uses_its_whole_range() -> None:
    found = round_to_nearest(weight(), GROUP)
    largest = found.codes.unflatten(1, (4, 3)).abs().amax(2)
    zero = torch.zeros(4, 4, dtype=torch.bool)
    zero[1, 1] = True
    assert torch.equal(largest == 7, ~zero)
    assert torch.equal(largest == 0, zero)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("scheme", SCHEMES, ids=TensorScheme.short)
def test_a_weight_that_is_not_finite_has_no_codes(scheme: TensorScheme, wrong: float) -> None:
    w = weight()
    w[2, 7] = wrong
    with pytest.raises(SsmquantError, match="a weight with NaN or infinity has no codes; check the float"):
        round_to_nearest(w, scheme)
    with pytest.raises(SsmquantError, match="a weight with NaN or infinity"):
        gptq(w, torch.eye(12), scheme)


def test_scales_that_weights_do_not_have_are_refused() -> None:
    scheme = TensorScheme(granularity=Granularity.PER_TOKEN)
    with pytest.raises(
        RecipeError, match="weights have no per-token scales; use per-tensor, per-channel or per-group"
    ):
        round_to_nearest(weight(), scheme)


@pytest.mark.parametrize("scheme", SCHEMES, ids=TensorScheme.short)
def test_the_table_has_both_under_the_names_of_recipes(scheme: TensorScheme) -> None:
    w, x = (
        weight(),
        torch.randn(30, 12, generator=torch.Generator().manual_seed(1)) @ torch.ones(12, 12).triu(),
    )
    hessian = x.T @ x
    rtn, spread = QUANTIZERS["rtn"], QUANTIZERS["gptq"]
    assert torch.equal(rtn.choose(w, scheme, torch.empty(0)).codes, round_to_nearest(w, scheme).codes)
    assert torch.equal(spread.choose(w, scheme, hessian).codes, gptq(w, hessian, scheme).codes)
    assert not np.array_equal(round_to_nearest(w, scheme).codes, gptq(w, hessian, scheme).codes)
