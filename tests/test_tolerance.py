"""The tolerance classes: what each lets through and what it does not, on both sides of the limit."""

from __future__ import annotations

import math

import pytest
import torch

from ssmquant.tolerance import (
    REQUANTISED_SHARE,
    assert_equal_codes,
    assert_float32,
    assert_half,
    assert_requantised,
    error_ratio,
    float32_limit,
)

EPS = 2.0**-23


def codes(count: int) -> torch.Tensor:
    return torch.arange(count).remainder(255).sub(127).to(torch.int8)


def test_error_ratio_is_of_root_mean_squares() -> None:
    ref = torch.tensor([3.0, 4.0, 0.0, 0.0])
    assert error_ratio(torch.tensor([3.0, 4.0, 0.3, 0.4]), ref) == pytest.approx(0.1, rel=1e-6)
    assert error_ratio(ref, ref) == 0.0


@pytest.mark.parametrize(
    ("got", "ref", "ratio"),
    [([0.0], [0.0], 0.0), ([1e-30], [0.0], math.inf), ([], [], 0.0)],
)
def test_error_ratio_of_nothing(got: list[float], ref: list[float], ratio: float) -> None:
    assert error_ratio(torch.tensor(got), torch.tensor(ref)) == ratio


@pytest.mark.parametrize("k", [1, 4, 5120])
def test_float32_on_both_sides_of_the_limit(k: int) -> None:
    assert float32_limit(k) == 4 * EPS * math.sqrt(k)
    ref = torch.ones(16, dtype=torch.float64)
    inside = (ref * (1 + 0.9 * float32_limit(k))).float()
    assert_float32(inside, ref, k)
    with pytest.raises(AssertionError, match=r"y: error ratio .*; at most .* is allowed"):
        assert_float32((ref * (1 + 1.3 * float32_limit(k))).float(), ref, k, "y")


def test_one_wrong_element_is_seen_among_many() -> None:
    ref = torch.ones(100_000)
    got = ref.clone()
    got[77] = 1.001
    with pytest.raises(AssertionError):
        assert_float32(got, ref, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_never_passes(bad: float) -> None:
    whole, broken = torch.ones(3), torch.tensor([1.0, bad, 1.0])
    for got, ref in ((broken, whole), (whole, broken), (broken, broken)):
        with pytest.raises(AssertionError, match="error ratio"):
            assert_float32(got, ref, 1)
        with pytest.raises(AssertionError, match="error ratio"):
            assert_half(got.half(), ref)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_one_rounding(dtype: torch.dtype) -> None:
    ref = torch.linspace(0.1, 7.0, 999, dtype=torch.float64)
    assert_half(ref.to(dtype), ref)
    with pytest.raises(AssertionError, match="error ratio"):
        assert_half((ref * (1 + 2 * torch.finfo(dtype).eps)).to(dtype), ref)


def test_equal_codes_are_equal() -> None:
    ref = codes(600).view(30, 20)
    assert_equal_codes(ref.clone(), ref)
    got = ref.clone()
    got[3, 7] += 1
    got[29, 0] -= 1
    expected = (
        f"x: 2 of 600 elements differ, the first at [3, 7]: {int(ref[3, 7]) + 1} in place of {int(ref[3, 7])}"
    )
    with pytest.raises(AssertionError, match=f"^{expected}".replace("[", r"\[")):
        assert_equal_codes(got, ref, "x")


def test_requantised_codes_may_be_one_off_in_a_thousand() -> None:
    ref = codes(3000).clamp(-126, 126)
    got = ref.clone()
    got[[5, 1500, 2999]] += torch.tensor([1, -1, 1], dtype=torch.int8)
    assert_requantised(got, ref)
    got[7] += 1
    with pytest.raises(
        AssertionError, match=r"4 of 3000 elements differ, the first at \[5\].*at most 0.001 of them"
    ):
        assert_requantised(got, ref)


def test_requantised_codes_are_never_two_off() -> None:
    ref = codes(3000).clamp(-125, 125)
    got = ref.clone()
    got[8] += 2
    with pytest.raises(
        AssertionError, match=r"more than 1 code apart: 1 of 3000 elements differ, the first at \[8\]"
    ):
        assert_requantised(got, ref)


def test_few_requantised_codes_have_to_be_equal() -> None:
    """A thousandth of less than a thousand elements is none."""
    ref = codes(int(0.9 / REQUANTISED_SHARE))
    got = ref.clone()
    got[0] += 1
    with pytest.raises(AssertionError):
        assert_requantised(got, ref)


def test_the_distance_between_codes_does_not_wrap() -> None:
    with pytest.raises(AssertionError, match="more than 1 code apart"):
        assert_requantised(torch.tensor([-128], dtype=torch.int8), torch.tensor([127], dtype=torch.int8))


def test_shape_and_dtype_are_part_of_every_class() -> None:
    floats, whole = torch.ones(2, 3), codes(6).view(2, 3)
    with pytest.raises(AssertionError, match=r"must have shape \[3, 2\], has \[2, 3\]"):
        assert_float32(floats, torch.ones(3, 2), 1)
    with pytest.raises(AssertionError, match=r"must be torch.float32, is torch.float64"):
        assert_float32(floats.double(), floats, 1)
    with pytest.raises(AssertionError, match=r"must be torch.float16 or torch.bfloat16, is torch.float32"):
        assert_half(floats, floats)
    with pytest.raises(AssertionError, match=r"must be torch.int8, is torch.int32"):
        assert_equal_codes(whole.int(), whole)
    with pytest.raises(AssertionError, match=r"must have shape \[6\], has \[2, 3\]"):
        assert_equal_codes(whole, whole.flatten())
    with pytest.raises(AssertionError, match=r"must be torch.int8, is torch.int32"):
        assert_requantised(whole.int(), whole.int())


def test_nothing_passes_for_nothing() -> None:
    assert_equal_codes(codes(0), codes(0))
    assert_requantised(codes(0), codes(0))
    assert_float32(torch.ones(0, 3), torch.ones(0, 3), 1)
