from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssmquant.numerics import dequantize, quantize, scale_from_absmax
from ssmquant.observers import Histogram

WIDTH = 1 / 64  # of a bin, relative to its lower edge, at most


def observed(x: Tensor) -> Histogram:
    histogram = Histogram()
    histogram.update(x)
    return histogram


def heavy_tailed(seed: int, count: int = 20_000) -> Tensor:
    """Return values of Student's distribution of four degrees of freedom, of which no fourth moment exists."""
    random = torch.Generator().manual_seed(seed)
    normal = torch.randn(count, 5, generator=random)
    return normal[:, :1] / normal[:, 1:].square().mean(dim=1, keepdim=True).sqrt()


def exact_percentile(x: Tensor, percentage: float) -> float:
    """Return the smallest of the magnitudes that the percentage of them do not exceed."""
    magnitudes = np.sort(np.abs(x.double().numpy()), axis=None)
    return float(magnitudes[math.ceil(magnitudes.size * percentage / 100.0) - 1])


@given(
    values=st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=40),
    percentage=st.floats(50.0, 100.0, exclude_min=True),
)
def test_percentile_is_the_exact_one_within_a_bin(values: list[float], percentage: float) -> None:
    x = torch.tensor(values, dtype=torch.float32)[:, None]
    exact = exact_percentile(x, percentage)
    found = observed(x).percentile(percentage)
    smallest = float(torch.finfo(torch.float32).tiny)  # below it, bins no longer narrow with the magnitude
    assert exact <= found <= max(exact * (1 + WIDTH), exact + smallest * WIDTH)


@pytest.mark.parametrize("percentage", [90.0, 99.0, 99.9, 99.999])
def test_percentile_of_many_values(percentage: float) -> None:
    x = heavy_tailed(0)
    exact = exact_percentile(x, percentage)
    assert exact <= observed(x).percentile(percentage) <= exact * (1 + WIDTH)


def test_all_of_the_values_are_within_the_hundredth_percentile() -> None:
    x = heavy_tailed(1)
    assert observed(x).percentile(100.0) >= float(x.abs().max())


def test_counts_are_of_magnitudes_and_of_every_value() -> None:
    histogram = observed(torch.tensor([[1.0, -1.0], [1.001, 3.0]]))
    assert int(histogram.counts.sum()) == 4
    assert sorted(histogram.counts[histogram.counts > 0].tolist()) == [1, 3]


@given(st.floats(0, 2.0**127, width=32))
def test_every_value_is_at_or_below_the_edge_of_its_bin(value: float) -> None:
    histogram = observed(torch.tensor([[value]]))
    place = int(histogram.counts.argmax())
    edges = histogram.edges()
    assert (edges[place - 1] if place else -1.0) <= value <= edges[place]


def test_every_float_has_a_bin() -> None:
    extremes = torch.tensor([0.0, torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max, 1e-45])
    assert int(observed(extremes[:, None]).counts.sum()) == 4
    assert bool((Histogram.edges().diff() >= 0).all())
    assert torch.isfinite(Histogram.edges()).all()


def error(x: Tensor, largest: float, bits: int) -> float:
    """Return the mean squared error of codes whose range ends at ``largest``."""
    scale = scale_from_absmax(torch.tensor(largest), bits)
    return float((dequantize(quantize(x, scale, bits), scale) - x).square().mean())


def test_the_middle_is_numpys() -> None:
    x = heavy_tailed(4, count=20_001)  # an odd number of values has a middle one
    exact = float(np.median(x.abs().numpy()))
    assert exact <= observed(x).percentile(50.001) <= exact * (1 + 2 * WIDTH)


@pytest.mark.parametrize(("bits", "share"), [(4, 0.25), (8, 0.95)])
def test_least_squares_beats_absmax_on_heavy_tails(bits: int, share: float) -> None:
    x = heavy_tailed(2)
    absmax = float(x.abs().max())
    found = observed(x).least_squares(absmax, bits)
    assert error(x, found, bits) < share * error(x, absmax, bits)


@pytest.mark.parametrize("bits", [4, 8])
def test_least_squares_finds_the_best_of_its_ranges(bits: int) -> None:
    x = heavy_tailed(3)
    absmax = float(x.abs().max())
    best = min(error(x, absmax * share / 100, bits) for share in range(1, 101))
    # The histogram knows values up to the width of a bin, so it may take a neighbour of the best range.
    assert error(x, observed(x).least_squares(absmax, bits), bits) <= 1.02 * best


def test_least_squares_keeps_the_whole_range_of_equal_magnitudes() -> None:
    x = torch.tensor([[1.0], [-1.0], [1.0]])
    assert observed(x).least_squares(1.0, 8) == 1.0
