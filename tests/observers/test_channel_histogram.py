"""Counts of channels, and the ranges that they give against a search on the values themselves."""

from __future__ import annotations

import pytest
import torch
from tests.observers.test_histogram import heavy_tailed
from torch import Tensor

from ssmquant.numerics import dequantize, quantize, scale_from_absmax
from ssmquant.observers import ChannelHistogram

GROUP = torch.tensor([0, 1, 0], dtype=torch.int16)


def observed(x: Tensor) -> ChannelHistogram:
    histogram = ChannelHistogram()
    histogram.update(x)
    return histogram


def error(x: Tensor, largest: float, bits: int) -> float:
    """Return the mean squared error of codes whose range ends at ``largest``."""
    scale = scale_from_absmax(torch.tensor(largest), bits)
    return float((dequantize(quantize(x, scale, bits), scale) - x).square().mean())


def channels(*scales: float, seed: int = 0) -> Tensor:
    return torch.cat([scale * heavy_tailed(seed + place) for place, scale in enumerate(scales)], dim=1)


def test_counts_are_of_magnitudes_in_their_channel() -> None:
    counts = observed(torch.tensor([[1.0, -1.0], [-1.01, 3.0], [0.0, 1e30]])).counts
    assert counts is not None
    assert counts.sum(dim=1).tolist() == [3, 3]
    assert sorted(counts[0][counts[0] > 0].tolist()) == [1, 2]
    assert sorted(counts[1][counts[1] > 0].tolist()) == [1, 1, 1]
    assert int(counts[0, 0]) == 1 and int(counts[1, -1]) == 1  # the outermost bins take what is beyond them


@pytest.mark.parametrize("bits", [4, 8])
def test_ranges_are_about_the_best_of_each_group(bits: int) -> None:
    x = channels(1.0, 30.0, 0.5)
    absmax = torch.stack([x[:, [0, 2]].abs().max(), x[:, 1].abs().max()])
    found = observed(x).least_squares(absmax, GROUP, bits)
    for range_, largest, part in zip(found.tolist(), absmax.tolist(), (x[:, [0, 2]], x[:, 1]), strict=True):
        best = min(error(part, largest * share / 100, bits) for share in range(1, 101))
        assert error(part, range_, bits) <= 1.03 * best
        assert error(part, range_, bits) < 0.97 * error(part, largest, bits)


def test_groups_of_another_scale_have_ranges_of_another_scale() -> None:
    """Multiplied by a power of two, all values are in bins as far along: the range is multiplied exactly."""
    x = channels(1.0, 1.0, 1.0)
    absmax = torch.stack([x[:, [0, 2]].abs().max(), x[:, 1].abs().max()])
    one = observed(x).least_squares(absmax, GROUP, 8)
    x[:, 1] *= 64
    other = observed(x).least_squares(absmax * torch.tensor([1.0, 64.0]), GROUP, 8)
    assert torch.equal(other, one * torch.tensor([1.0, 64.0]))


def test_equal_magnitudes_keep_their_range() -> None:
    x = torch.tensor([[1.5, -2.0, 1.5], [-1.5, 2.0, 1.5]])
    assert observed(x).least_squares(torch.tensor([1.5, 2.0]), GROUP, 8).tolist() == [1.5, 2.0]
