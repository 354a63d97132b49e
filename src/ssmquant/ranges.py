"""From statistics to scales: the static scales of each site, by its scheme's range rule and granularity."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.modules.activation import Activation
from ssmquant.modules.mixer import StateSite
from ssmquant.scheme import Granularity, RangeRule, TensorScheme
from ssmquant.statistics import Needs, Statistics

__all__ = ["needed", "site_tensors"]


def needed(schemes: dict[str, TensorScheme]) -> Needs:
    """Return the statistics that the static sites among these need."""
    return {site: ("absmax", *_histogram(scheme)) for site, scheme in schemes.items() if scheme.is_static_int}


def _histogram(scheme: TensorScheme) -> tuple[str, ...]:
    """Return the name of the histogram that a scheme's rule needs, if any."""
    if scheme.range is RangeRule.ABSMAX:
        return ()
    return ("histogram",) if scheme.granularity is Granularity.PER_TENSOR else ("channel-histogram",)


def site_tensors(
    name: str, site: Activation | StateSite, statistics: Statistics, groups: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return the tensors of a site: its static ``scale`` and, where channels are grouped, their ``group``.

    Args:
        name: name of the site.
        site: its module.
        statistics: with what `needed` asked for.
        groups: group of each channel for per-head-group sites, int16 ``[C]``.

    Returns:
        nothing for a float or dynamic site.
    """
    scheme = site.scheme
    if not scheme.is_static_int:
        return {}
    absmax = statistics.absmax(name)
    rows = absmax if absmax.dim() == 2 else absmax[:, None]  # [C, d_state or 1]
    group = _group(name, site, groups)
    if group is not None:
        maxima = torch.zeros(site.scale.shape[0], rows.shape[1])
        maxima = maxima.scatter_reduce(0, group.long()[:, None].expand_as(rows), rows, "amax")
    elif scheme.granularity is Granularity.PER_CHANNEL:
        maxima = rows.amax(dim=1, keepdim=True)
    else:
        maxima = rows.amax().reshape(1, 1)
    maxima = _clip(name, maxima, group, scheme, statistics)
    tensors = {"scale": numerics.scale_from_absmax(maxima, scheme.bits).view(site.scale.shape)}
    return tensors if group is None else tensors | {"group": group}


def _group(name: str, site: Activation | StateSite, groups: dict[str, Tensor]) -> Tensor | None:
    """Return the group of each channel, or None where channels are not grouped."""
    match site.scheme.granularity:
        case Granularity.PER_HEAD_GROUP:
            return groups[name]
        case Granularity.PER_STATE_GROUP:
            return torch.arange(site.dims["ngroups"], dtype=torch.int16).repeat_interleave(
                site.dims["d_state"]
            )
    return None


def _clip(
    name: str, maxima: Tensor, group: Tensor | None, scheme: TensorScheme, statistics: Statistics
) -> Tensor:
    """Return the ranges after the scheme's rule, ``[scales, d_state or 1]`` as the maxima."""
    match scheme.range, scheme.granularity:
        case RangeRule.ABSMAX, _:
            return maxima
        case RangeRule.MSE, Granularity.PER_TENSOR:
            found = statistics.histogram(name).least_squares(float(maxima), scheme.bits)
            return torch.full_like(maxima, found)
        case RangeRule.MSE, Granularity.PER_STATE_GROUP:
            assert group is not None
            histogram = statistics.channel_histogram(name)
            return histogram.least_squares(maxima[:, 0], group, scheme.bits)[:, None]
        case RangeRule.PERCENTILE, Granularity.PER_TENSOR:
            assert scheme.percentile is not None
            found = statistics.histogram(name).percentile(scheme.percentile)
            return torch.full_like(maxima, min(float(maxima), found))
    raise RecipeError(f"site {name}: the rule {scheme.range} is not known for {scheme.granularity} scales")
