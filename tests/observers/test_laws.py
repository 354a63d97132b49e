"""Observers are commutative monoids, exactly: any shards, in any order, give the statistic of the whole bit for bit."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssmquant.observers import OBSERVERS, Observer

EVERY = pytest.mark.parametrize("name", OBSERVERS)
CHANNELS = 5


def batch(tokens: int, seed: int) -> Tensor:
    """Return values of very different size, some of them zero."""
    random = torch.Generator().manual_seed(seed)
    values = torch.randn(tokens, CHANNELS, generator=random) * torch.logspace(-3, 2, CHANNELS)
    return values * (torch.rand(tokens, CHANNELS, generator=random) > 0.1)


batches = st.lists(st.builds(batch, st.integers(1, 6), st.integers(0, 2**32)), min_size=1, max_size=5)


def observed(name: str, data: list[Tensor]) -> Observer:
    observer = OBSERVERS[name]()
    for x in data:
        observer.update(x)
    return observer


def same(a: Observer, b: Observer) -> bool:
    return a.state().keys() == b.state().keys() and all(
        torch.equal(value, b.state()[key]) for key, value in a.state().items()
    )


@EVERY
@given(data=batches, order=st.randoms())
def test_shards_merge_in_any_order(name: str, data: list[Tensor], order: object) -> None:
    shards = [observed(name, [x]) for x in data]
    order.shuffle(shards)  # type: ignore[attr-defined]
    merged = reduce(lambda a, b: a.merge(b), shards)
    assert same(merged, observed(name, data))


@EVERY
@given(a=batches, b=batches, c=batches)
def test_merging_is_associative_and_commutative(
    name: str, a: list[Tensor], b: list[Tensor], c: list[Tensor]
) -> None:
    x, y, z = (observed(name, data) for data in (a, b, c))
    assert same(x.merge(y).merge(z), x.merge(y.merge(z)))
    assert same(x.merge(y), y.merge(x))


@EVERY
@given(data=batches)
def test_a_fresh_observer_changes_nothing(name: str, data: list[Tensor]) -> None:
    x, fresh = observed(name, data), OBSERVERS[name]()
    assert same(x.merge(fresh), x)
    assert same(fresh.merge(x), x)
    assert same(fresh.merge(OBSERVERS[name]()), fresh)


@EVERY
@given(data=batches)
def test_the_state_is_the_whole_statistic(name: str, data: list[Tensor]) -> None:
    x = observed(name, data)
    copy = OBSERVERS[name].from_state({key: value.clone() for key, value in x.state().items()})
    assert same(copy, x)
    x.update(data[0])
    copy.update(data[0])
    assert same(copy, x)


@EVERY
def test_merging_changes_neither_observer(name: str) -> None:
    x, y = observed(name, [batch(4, 0)]), observed(name, [batch(4, 1)])
    before = {key: value.clone() for key, value in x.state().items()}
    x.merge(y).update(batch(4, 2))
    assert all(torch.equal(value, before[key]) for key, value in x.state().items())


@EVERY
def test_observing_keeps_nothing_of_the_data(name: str) -> None:
    data = batch(4, 0)
    x = observed(name, [data])
    data.fill_(1e3)  # the model may write into its activations afterwards
    assert same(x, observed(name, [batch(4, 0)]))


@EVERY
def test_different_data_gives_a_different_statistic(name: str) -> None:
    assert not same(observed(name, [batch(6, 0)]), observed(name, [batch(6, 1)]))
