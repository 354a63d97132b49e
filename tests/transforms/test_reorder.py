from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import CONFIGS, float_model, quantised
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.families import family_of
from ssmquant.modules.mamba2 import Mamba2Mixer
from ssmquant.transforms import TRANSFORMS
from ssmquant.transforms.reorder import Order, find_order

ShapedOrder = tuple[Tensor, int, int, int, Order]


@st.composite
def orders(draw: st.DrawFn) -> ShapedOrder:
    ngroups = draw(st.integers(1, 3))
    within = draw(st.integers(1, 7))
    headdim = draw(st.integers(1, 9))
    m, n = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    absmax = torch.rand(ngroups * within, headdim, generator=random)
    if draw(st.booleans()):  # equal maxima, as of channels that were never seen
        absmax = (absmax * 2).round()
    return absmax, ngroups, m, n, find_order(absmax, ngroups, m, n)


shaped = settings(deadline=None)


@shaped
@given(orders())
def test_heads_are_permuted_within_their_ssd_group(case: ShapedOrder) -> None:
    absmax, ngroups, _, _, order = case
    within = absmax.shape[0] // ngroups
    assert sorted(order.heads.tolist()) == list(range(absmax.shape[0]))
    assert torch.equal(order.heads // within, torch.arange(absmax.shape[0]) // within)


@shaped
@given(orders())
def test_channels_stay_in_their_head_and_ascend(case: ShapedOrder) -> None:
    absmax, _, _, _, order = case
    headdim = absmax.shape[1]
    assert sorted(order.channels.tolist()) == list(range(absmax.numel()))
    assert torch.equal(order.channels // headdim, order.heads.repeat_interleave(headdim))
    moved = absmax.flatten()[order.channels].view_as(absmax)
    assert bool((moved.diff(dim=1) >= 0).all())


@shaped
@given(orders())
def test_groups_are_contiguous(case: ShapedOrder) -> None:
    absmax, ngroups, m, n, order = case
    heads, headdim = absmax.shape
    within = heads // ngroups
    clusters = min(m, within) * min(n, headdim)
    group = order.group.view(heads, headdim).long()
    assert torch.equal(group // clusters, (torch.arange(heads) // within)[:, None].expand_as(group))
    local = group % clusters
    head_cluster, position_cluster = local // min(n, headdim), local % min(n, headdim)
    for ssd_group in head_cluster.view(ngroups, within, headdim):
        assert bool((ssd_group == ssd_group[:, :1]).all())  # a head is of one cluster
        assert bool((ssd_group[:, 0].diff() >= 0).all())
    assert bool((position_cluster.diff(dim=1) >= 0).all())
    # Heads of one cluster have their positions cut in the same places.
    for cluster in head_cluster[:, 0].unique():
        for g in range(ngroups):
            rows = position_cluster[g * within : (g + 1) * within]
            mine = rows[head_cluster[g * within : (g + 1) * within, 0] == cluster]
            assert bool((mine == mine[:1]).all())


@shaped
@given(orders())
def test_every_scale_is_used(case: ShapedOrder) -> None:
    absmax, ngroups, m, n, order = case
    within, headdim = absmax.shape[0] // ngroups, absmax.shape[1]
    assert len(order.group.unique()) == ngroups * min(m, within) * min(n, headdim)


def test_heads_of_like_range_are_one_group() -> None:
    loud, quiet = torch.tensor([9.0, 10.0, 11.0, 10.0]), torch.tensor([0.1, 0.2, 0.1, 0.15])
    order = find_order(
        torch.stack([loud, quiet, loud, quiet, quiet, loud]), ngroups=1, head_groups=2, channel_groups=1
    )
    assert order.heads.tolist() == [1, 3, 4, 0, 2, 5]
    assert order.group.view(6, 4)[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert order.channels.view(6, 4)[3].tolist() == [0, 1, 3, 2]  # of head 0, ascending, equal ones in order


def test_positions_of_like_range_are_one_group() -> None:
    absmax = torch.tensor([[5.0, 0.1, 0.1, 5.2, 0.1, 5.1, 0.1, 0.1]])
    order = find_order(absmax, ngroups=1, head_groups=4, channel_groups=2)
    assert order.group.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]


def test_a_finer_grouping_wastes_less_of_the_range() -> None:
    absmax = torch.randn(12, 8, generator=torch.Generator().manual_seed(0)).exp()

    def waste(m: int, n: int) -> float:
        order = find_order(absmax, 2, m, n)
        moved, group = absmax.flatten()[order.channels], order.group.long()
        largest = torch.zeros(int(group.max()) + 1).scatter_reduce(0, group, moved, "amax")
        return float((largest[group] / moved).log2().mean())  # bits that a channel does not use

    assert waste(1, 1) > waste(1, 4) > waste(4, 4)
    assert waste(6, 8) == 0.0


def test_mamba1_is_refused() -> None:
    config = CONFIGS["mamba"]
    with pytest.raises(InputError, match="Mamba-1 has no heads to cluster"):
        TRANSFORMS["reorder"].check(family_of(config.model_type, "here").dims(config))


def test_the_groups_are_those_of_every_site_of_x() -> None:
    model = quantised("mamba2-two-groups", "quamba2-w8a8")
    scales = {name: site for name, site in model.shell.activations()}
    for layer in range(3):
        groups = [scales[f"layers.{layer}.{site}"].group for site in ("x_in", "x", "z", "state")]
        assert all(torch.equal(group, groups[0]) for group in groups)
        assert len(groups[0].unique()) == 2 * 4 * 4
    assert not torch.equal(scales["layers.0.x"].group, scales["layers.1.x"].group)


def test_per_head_parameters_move_with_their_heads() -> None:
    before, after = (
        float_model("mamba2-two-groups").shell,
        quantised("mamba2-two-groups", "quamba2-w8a8").shell,
    )
    for old, new in zip(before.blocks, after.blocks, strict=True):
        a, b = old.mixer, new.mixer
        assert isinstance(a, Mamba2Mixer)
        assert isinstance(b, Mamba2Mixer)
        order = [a.D.tolist().index(value) for value in b.D.tolist()]
        assert sorted(order) == list(range(12))
        assert order != list(range(12))
        assert torch.equal(b.A_log, a.A_log[order])
        assert torch.equal(b.dt_bias, a.dt_bias[order])
