"""`reorder`: heads and channels of x are sorted and clustered by range (Quamba2, arXiv 2503.22879, section 4.2).

Within each SSD group: channels of a head are sorted by their calibrated maximum, heads are clustered into m
groups by those
maxima, and the channel positions of each head group into n groups (Ward's method both times). The permutation is folded
into in_proj, the convolution, the per-head parameters, the gated norm and out_proj: SSD keeps the order of
its channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy  # which imports its parts when they are first used
import torch
from torch import Tensor

from ssmquant.errors import InputError, RecipeError
from ssmquant.families import Shell
from ssmquant.families.table import Dims
from ssmquant.modules.mamba2 import Mamba2Dims, Mamba2Mixer
from ssmquant.scheme import Granularity, TensorScheme
from ssmquant.statistics import Needs
from ssmquant.transforms.base import Context, Transform, replace_parameter

__all__ = ["REORDER", "Order", "find_order"]

_SITES = ("x_in", "x", "z", "state")


class Order(NamedTuple):
    """A new order of heads and channels.

    Attributes:
        heads: int64 ``[H]``, old head at each new place.
        channels: int64 ``[H * P]``, old channel at each new place.
        group: int16 ``[H * P]``, group of each new place, contiguous within an SSD group.
    """

    heads: Tensor
    channels: Tensor
    group: Tensor


def _clusters(features: np.ndarray, count: int) -> np.ndarray:
    """Return a label a row; labels ascend with the rows' mean."""
    if count >= len(features):
        labels = np.arange(len(features))
    else:
        hierarchy = scipy.cluster.hierarchy
        labels = hierarchy.cut_tree(hierarchy.linkage(features, method="ward"), n_clusters=count).ravel()
    means = [features[labels == label].mean() for label in range(labels.max() + 1)]
    rank = np.argsort(np.argsort(means, kind="stable"), kind="stable")
    return rank[labels]


def find_order(absmax: Tensor, ngroups: int, head_groups: int, channel_groups: int) -> Order:
    """Return the order and grouping for calibrated maxima of x.

    Args:
        absmax: float ``[H, P]``.
        ngroups: SSD groups; heads stay in theirs.
        head_groups: m, clusters of heads in an SSD group (at most the heads there are).
        channel_groups: n, clusters of channel positions in a head group (at most P).
    """
    nheads, headdim = absmax.shape
    within = nheads // ngroups
    m, n = min(head_groups, within), min(channel_groups, headdim)
    ascending, channel_order = torch.sort(absmax.double(), dim=1, stable=True)
    heads: list[int] = []
    group = torch.empty(nheads, headdim, dtype=torch.int16)
    for g in range(ngroups):
        maxima = ascending[g * within : (g + 1) * within].numpy()
        head_labels = _clusters(maxima, m)
        for label in range(m):
            members = np.flatnonzero(head_labels == label)
            positions = _clusters(maxima[members].max(axis=0)[:, None], n)
            scale = (g * m + label) * n + positions
            group[len(heads) : len(heads) + len(members)] = torch.from_numpy(scale).to(torch.int16)
            heads += (g * within + members).tolist()
    head_order = torch.tensor(heads)
    channels = (head_order[:, None] * headdim + channel_order[head_order]).flatten()
    return Order(head_order, channels, group.flatten())


def _permute(mixer: Mamba2Mixer, order: Order) -> None:
    dims = mixer.dims
    inner, states = dims.d_inner, 2 * dims.ngroups * dims.d_state
    conv = torch.cat([order.channels, inner + torch.arange(states)])
    projection = torch.cat([order.channels, inner + conv, inner + dims.conv_dim + order.heads])
    for module, name, rows in (
        (mixer.in_proj, "weight", projection),
        (mixer.in_proj, "bias", projection),
        (mixer.conv1d, "weight", conv),
        (mixer.conv1d, "bias", conv),
        (mixer, "dt_bias", order.heads),
        (mixer, "A_log", order.heads),
        (mixer, "D", order.heads),
        (mixer.norm, "weight", order.channels),
    ):
        if getattr(module, name) is not None:
            replace_parameter(module, name, getattr(module, name).detach()[rows])
    replace_parameter(mixer.out_proj, "weight", mixer.out_proj.weight.detach()[:, order.channels])


def _apply(shell: Shell, context: Context) -> None:
    for index, block in enumerate(shell.blocks):
        mixer = block.mixer
        assert isinstance(mixer, Mamba2Mixer)
        dims = mixer.dims
        names = [f"layers.{index}.{site}" for site in _SITES]
        m, n = _group_counts([context.schemes[name] for name in names if name in context.schemes])
        absmax = context.statistics.absmax(f"layers.{index}.x").view(dims.nheads, dims.headdim)
        order = find_order(absmax, dims.ngroups, m, n)
        _permute(mixer, order)
        context.groups.update(dict.fromkeys(names, order.group))


def _group_counts(schemes: list[TensorScheme]) -> tuple[int, int]:
    """Return m and n of the layer's per-head-group schemes; (1, 1) if it has none."""
    counts = {
        (s.head_groups, s.channel_groups) for s in schemes if s.granularity is Granularity.PER_HEAD_GROUP
    }
    if len(counts) > 1:
        raise RecipeError(
            f"reorder: per-head-group sites of a layer share their groups, found {sorted(map(str, counts))} "
            "(head_groups, channel_groups); give them the same"
        )
    m, n = counts.pop() if counts else (1, 1)
    return m or 1, n or 1


def _needs(shell: Shell) -> Needs:
    return {f"layers.{index}.x": ("absmax",) for index in range(len(shell.blocks))}


def _check(dims: Dims) -> None:
    if not isinstance(dims, Mamba2Dims):
        raise InputError("reorder: Mamba-1 has no heads to cluster; leave the transform out")


REORDER = Transform("reorder", _apply, needs=_needs, check=_check)
