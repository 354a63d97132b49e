from __future__ import annotations

import pytest
import torch

from ssmquant.errors import SsmquantError
from ssmquant.observers import Hessian
from ssmquant.tolerance import error_ratio, float32_limit


def test_the_second_moment_of_the_channels() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=random)
    observer = Hessian()
    observer.update(x[:20])
    observer.update(x[20:])
    exact = x.double().T @ x.double()
    assert error_ratio(observer.value, exact) <= float32_limit(50)
    assert torch.equal(observer.value, observer.value.T)


@pytest.mark.parametrize("extreme", [1e12, float("nan"), float("inf")])
def test_moments_beyond_64_bits_are_refused(extreme: float) -> None:
    with pytest.raises(SsmquantError, match="out of range on this text"):
        Hessian().update(torch.tensor([[extreme, 1.0]]))


def test_nothing_observed_has_no_moment() -> None:
    with pytest.raises(SsmquantError, match="nothing was observed"):
        _ = Hessian().value
