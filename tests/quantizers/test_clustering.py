from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from ssmquant.quantizers.clustering import weighted_kmeans


def error(values: Tensor, weights: Tensor, centres: Tensor) -> Tensor:
    """Return the weighted squared error of each row."""
    distance = (values.double()[:, :, None] - centres[:, None, :]).square().amin(dim=2)
    return (weights * distance).sum(dim=1)


def optimum(values: Tensor, weights: Tensor, clusters: int) -> Tensor:
    """Return the least error of each row, over all ways to cut the sorted values (quadratic, in numpy)."""
    found = []
    for row, weight in zip(values.double().numpy(), weights.double().numpy(), strict=True):
        order = np.argsort(row)
        v, w = row[order], weight[order]
        cost = np.full((len(v) + 1, len(v) + 1), np.inf)
        for start in range(len(v)):
            cost[start, start] = 0.0
            mass = np.cumsum(w[start:])
            mean = np.cumsum(w[start:] * v[start:]) / np.where(mass > 0, mass, 1.0)
            # Welford: what one more value adds is its weighted distance from the means before and after.
            before = np.concatenate([v[start : start + 1], mean[:-1]])
            cost[start, start + 1 :] = np.cumsum(w[start:] * (v[start:] - before) * (v[start:] - mean))
        best = cost[0]
        for _ in range(clusters - 1):
            best = (best[:, None] + cost).min(axis=0)
        found.append(best[-1])
    return torch.tensor(found)


def trained_like(rows: int, columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return heavy-tailed values, and weights over several orders of magnitude as Fisher information has them."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=random) * (
        1 + torch.randn(rows, columns, generator=random) ** 2
    )
    channels = 2 * torch.randn(columns, generator=random)  # an input that is often large matters in every row
    return values, (channels + torch.randn(rows, columns, generator=random)).exp().double()


@pytest.mark.parametrize("clusters", [8, 16])
def test_rows_of_few_values_are_solved_exactly(clusters: int) -> None:
    values, weights = trained_like(20, 48)
    best = optimum(values, weights, clusters)
    assert best.min() > 0
    torch.testing.assert_close(error(values, weights, weighted_kmeans(values, weights, clusters)), best)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 5)), min_size=1, max_size=30), st.integers(2, 6)
)
def test_ties_zeros_and_rows_of_any_length_are_solved_exactly(
    row: list[tuple[int, int]], clusters: int
) -> None:
    values, weights = torch.tensor(row, dtype=torch.float64).T[:, None, :]
    centres = weighted_kmeans(values, weights, clusters)
    assert torch.equal(centres, centres.sort(dim=1).values)
    assert values.min() - 1e-9 <= centres.min() and centres.max() <= values.max() + 1e-9
    counted = weights if weights.any() else torch.ones_like(weights)
    best = optimum(values, counted, clusters)
    torch.testing.assert_close(error(values, counted, centres), best, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("clusters", [8, 16])
@pytest.mark.parametrize("columns", [256, 600])
def test_long_rows_are_within_a_few_percent_of_the_optimum(columns: int, clusters: int) -> None:
    values, weights = trained_like(12, columns)
    ratio = error(values, weights, weighted_kmeans(values, weights, clusters)) / optimum(
        values, weights, clusters
    )
    assert ratio.min() > 1 - 1e-9
    assert ratio.mean() < 1.01 and ratio.max() < 1.05


@pytest.mark.parametrize("clusters", [8, 16])
def test_no_row_is_worse_than_the_papers_kmeans(clusters: int) -> None:
    values, weights = trained_like(12, 256, seed=1)
    theirs = [
        KMeans(clusters, random_state=0, n_init=1, max_iter=50)
        .fit(v[:, None].double().numpy(), sample_weight=w.numpy())
        .cluster_centers_
        for v, w in zip(values, weights, strict=True)
    ]
    ours = error(values, weights, weighted_kmeans(values, weights, clusters))
    other = error(values, weights, torch.from_numpy(np.stack(theirs)).squeeze(2))
    assert bool((ours <= 1.005 * other).all())
    assert ours.sum() < 0.98 * other.sum()


def test_values_without_weight_attract_no_centre() -> None:
    values, weights = trained_like(4, 300)
    alone = weighted_kmeans(values, weights, 16)
    far = torch.cat([values, torch.tensor([[-900.0, 900.0]]).expand(4, 2)], dim=1)
    centres = weighted_kmeans(far, torch.cat([weights, weights.new_zeros(4, 2)], dim=1), 16)
    torch.testing.assert_close(
        error(values, weights, centres), error(values, weights, alone), rtol=0.03, atol=0
    )
    assert centres.abs().max() < 100


def test_a_row_of_zero_weights_counts_as_one_of_ones() -> None:
    values, weights = trained_like(3, 200)
    weights[1] = 0
    both = weighted_kmeans(values, weights, 8)
    assert torch.equal(both[1:2], weighted_kmeans(values[1:2], torch.ones(1, 200), 8))
    assert torch.equal(both[2:], weighted_kmeans(values[2:], weights[2:], 8))


def test_the_unit_of_the_weights_does_not_matter() -> None:
    values, weights = trained_like(3, 200)
    assert torch.equal(weighted_kmeans(values, weights, 8), weighted_kmeans(values, weights * 2.0**-80, 8))


def test_a_row_gives_the_same_alone_as_among_others() -> None:
    values, weights = trained_like(70, 100)  # more than are solved at once
    together = weighted_kmeans(values, weights, 8)
    assert torch.equal(together[66:67], weighted_kmeans(values[66:67], weights[66:67], 8))


def test_fewer_values_than_clusters_are_all_met() -> None:
    values = torch.tensor([[3.0, 1.0] * 50, [2.0] * 100])
    centres = weighted_kmeans(values, torch.ones(2, 100), 8)
    assert set(centres[0].tolist()) == {1.0, 3.0}
    assert set(centres[1].tolist()) == {2.0}
