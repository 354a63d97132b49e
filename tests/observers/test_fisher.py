from __future__ import annotations

import pytest
import torch

from ssmquant.errors import SsmquantError
from ssmquant.observers import Fisher

UNIT = 2.0**-50


def test_the_sum_of_squares_over_the_windows() -> None:
    gradients = torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(0)) * 1e-3
    observer = Fisher()
    observer.update(gradients[:4])
    observer.update(gradients[4:])
    exact = gradients.double().square().sum(dim=0)
    assert bool(((observer.value - exact).abs() <= 7 * UNIT / 2).all())


def test_a_square_is_rounded_to_the_unit() -> None:
    observer = Fisher()
    observer.update(torch.tensor([[2.0**-25, 1.5 * 2.0**-25, 2.0**-27]]))
    assert observer.total is not None
    assert observer.total.tolist() == [1, 2, 0]  # 2.25 units, and a quarter of one


def test_sums_stay_at_the_largest_in_whatever_order() -> None:
    """Without an overflow to negative numbers, which would be the least sensitive weights of all."""
    small, large, huge = (torch.tensor([[value]]) for value in (3.0, 40.0, 1e30))

    def of(*parts: torch.Tensor) -> Fisher:
        observer = Fisher()
        for part in parts:
            observer.update(part)
        return observer

    cap = 2.0**61 * UNIT
    assert of(large).value.item() == 1600.0 < cap == of(large, large).value.item() == of(huge).value.item()
    assert of(large, small, large).value.item() == of(large).merge(of(large, small)).value.item() == cap
    full = of(huge)
    for _ in range(5):
        full = full.merge(full)
    assert full.value.item() == cap


@pytest.mark.parametrize("extreme", [float("nan"), float("inf")])
def test_gradients_that_are_not_finite_are_refused(extreme: float) -> None:
    with pytest.raises(SsmquantError, match="gradient of the loss is NaN or infinite"):
        Fisher().update(torch.tensor([[1.0, extreme]]))


def test_nothing_observed_has_no_value() -> None:
    with pytest.raises(SsmquantError, match="nothing was observed"):
        _ = Fisher().value
