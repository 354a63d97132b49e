"""The second moment: exact sums of products that are rounded once, and no silent overflow. Laws: `test_laws`."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.observers import Hessian
from ssmquant.tolerance import error_ratio, float32_limit

UNIT = 2.0**-24
LARGEST = 2.0**38


def observed(*updates: Tensor) -> Hessian:
    observer = Hessian()
    for x in updates:
        observer.update(x)
    return observer


def moment(*updates: Tensor) -> Tensor:
    x = torch.cat(updates).double()
    return x.T @ x


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_second_moment_of_the_channels() -> None:
    x = normal(50, 6)
    observer = observed(x[:20], x[20:])
    assert observer.value.dtype == torch.float64
    assert error_ratio(observer.value, moment(x)) <= float32_limit(50)
    assert torch.equal(observer.value, observer.value.T)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 2**32), st.integers(-30, 8)), min_size=1, max_size=5)
)
def test_an_update_is_off_by_half_a_unit_and_float32(updates: list[tuple[int, int, int]]) -> None:
    """Whatever the size: far below the unit nothing but the half unit is left of the bound."""
    data = [normal(tokens, 4, seed=seed) * 2.0**size for tokens, seed, size in updates]
    # A float32 product of t terms is off by at most t * eps of the sum of magnitudes.
    sums = sum(len(x) * torch.finfo(torch.float32).eps * (x.abs().T @ x.abs()).double() for x in data)
    bound = len(data) * UNIT / 2 + sums
    assert bool(((observed(*data).value - moment(*data)).abs() <= bound).all())


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(-255, 255), min_size=3, max_size=3), min_size=1, max_size=9),
    st.integers(0, 9),
)
def test_what_float32_and_the_unit_hold_is_exact(rows: list[list[int]], cut: int) -> None:
    x = (
        torch.tensor(rows, dtype=torch.float32) / 2**12
    )  # products are multiples of the unit, of at most 20 bits
    assert torch.equal(observed(x[:cut], x[cut:]).value, moment(x))


def test_a_small_addend_is_not_lost_beside_a_large_sum() -> None:
    """As it would be in float64: 2^37 + 2^-24 has 61 bits."""
    large, small = torch.tensor([[2.0**18.5]]), torch.tensor([[2.0**-12]])
    first = observed(large)
    assert first.total is not None
    both = first.merge(observed(small))
    assert both.total is not None
    assert (both.total - first.total).tolist() == [[1]]


def test_half_precision_is_multiplied_in_float32() -> None:
    x = (normal(20, 3) * 300).half()  # whose squares are beyond float16
    assert error_ratio(observed(x).value, moment(x)) <= float32_limit(20)


def test_the_rounding_is_far_below_the_damping_of_gptq() -> None:
    """As the module says: for channels of root mean square 1e-3, over 128 updates."""
    updates = [normal(64, 32, seed=seed) * 1e-3 for seed in range(128)]
    error = observed(*updates).value - moment(*updates)
    damping = 0.01 * moment(*updates).diagonal().mean()
    assert torch.linalg.matrix_norm(error, 2) < damping / 20


@pytest.mark.parametrize("extreme", [1e12, float("nan"), float("inf"), -float("inf"), 2.0**19])
def test_moments_beyond_64_bits_are_refused(extreme: float) -> None:
    for row in ([extreme, 1.0], [1.0, extreme], [0.0, extreme]):
        with pytest.raises(SsmquantError, match=r"beyond the 2\.75e\+11 .* out of range on this text"):
            Hessian().update(torch.tensor([row]))


def test_a_sum_beyond_64_bits_is_refused_and_does_not_wrap() -> None:
    """Each update fits. In whatever order they come, their sum does not."""
    half = torch.tensor([[2.0**18.5, 1.0]])
    first, second = observed(half), observed(half * 0.999, torch.ones(1, 2))
    with pytest.raises(SsmquantError, match="second moments reach"):
        observed(half, half, half)
    with pytest.raises(SsmquantError, match="calibrate on less"):
        first.merge(second).merge(first)
    with pytest.raises(SsmquantError, match="calibrate on less"):
        second.merge(first.merge(first))


def test_an_update_that_is_refused_changes_nothing() -> None:
    observer = observed(normal(5, 2))
    before = observer.value
    with pytest.raises(SsmquantError):
        observer.update(torch.tensor([[float("nan"), 1.0]]))
    assert torch.equal(observer.value, before)


def test_nothing_observed_has_no_moment() -> None:
    with pytest.raises(SsmquantError, match="nothing was observed"):
        _ = Hessian().value
