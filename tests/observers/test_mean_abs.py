from __future__ import annotations

import pytest
import torch

from ssmquant.errors import SsmquantError
from ssmquant.observers import MeanAbs

UNIT = 2.0**-24


def observed(*batches: torch.Tensor) -> MeanAbs:
    observer = MeanAbs()
    for batch in batches:
        observer.update(batch)
    return observer


def test_the_mean_magnitude_of_each_channel() -> None:
    found = observed(torch.tensor([[1.0, -5.0, 0.0], [-2.0, 3.0, 0.0]]), torch.tensor([[0.0, 4.0, -0.75]]))
    assert found.value.tolist() == [1.0, 4.0, 0.25]


def test_it_is_that_of_float64_up_to_the_unit() -> None:
    x = torch.randn(500, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, 7)
    error = observed(x).value - x.double().abs().mean(dim=0)
    assert float(error.abs().max()) <= UNIT / 2


def test_batches_do_not_matter() -> None:
    """Not even where float32 sums would differ: magnitudes become integers before they are added."""
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(1)) * torch.logspace(-6, 5, 4)
    whole, parts = observed(x), observed(*x.flip(0).split(7))
    assert whole.total is not None and parts.total is not None
    assert torch.equal(whole.total, parts.total)
    assert whole.count == parts.count == 300


def test_shards_of_unlike_size_are_weighted_by_their_tokens() -> None:
    merged = observed(torch.full((3, 1), 4.0)).merge(observed(torch.zeros(1, 1)))
    assert merged.value.item() == 3.0


@pytest.mark.parametrize("extreme", [1e12, float("nan"), float("inf")])
def test_sums_beyond_64_bits_are_refused(extreme: float) -> None:
    with pytest.raises(SsmquantError, match="out of range on this text"):
        observed(torch.tensor([[extreme, 1.0]]))


def test_sums_that_leave_64_bits_only_together_are_refused() -> None:
    half = torch.full((1, 1), 2.0**37)  # 2**61 units
    with pytest.raises(SsmquantError, match=r"reach 2\.75e\+11"):
        observed(half, half)


def test_nothing_observed_has_no_mean() -> None:
    with pytest.raises(SsmquantError, match="nothing was observed"):
        _ = MeanAbs().value
