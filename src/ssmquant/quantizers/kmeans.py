"""Tables of values by weighted k-means, with the weights that matter most kept exact (SqueezeLLM, arXiv 2306.07629).

Dense and sparse (section 4.2): the most sensitive weights (0.05 % of a matrix, by Fisher) and after them the largest
ones are left out of the clustering and stored exactly, in float16. The paper takes outliers beyond a threshold in
units of the quartiles' distance, tuned to about a share; here it is the share itself, in whole weights, so that shapes
follow from the plan. And the paper stores the weight itself; here it is what the nearest table value lacks, so that
rounding to float16 is of a smaller number, and a kernel adds all the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError, SsmquantError
from ssmquant.formats import Codes
from ssmquant.formats.base import Sparse
from ssmquant.formats.lut import sparse_count
from ssmquant.quantizers.clustering import weighted_kmeans
from ssmquant.scheme import TensorScheme

__all__ = ["kmeans"]

_SENSITIVE_PERCENT = 0.05


def kmeans(weight: Tensor, fisher: Tensor, scheme: TensorScheme) -> Codes:
    """Return a table for each row and the place in it that is nearest to each weight (the lower of two as near).

    Args:
        weight: float ``[N, K]``.
        fisher: sum of squared gradients ``[N, K]``; any positive factor of it gives the same codes.
        scheme: a lut scheme.

    Raises:
        InputError: the Fisher information has another shape than the weight.
        SsmquantError: the weight is not finite or beyond float16.
    """
    if fisher.shape != weight.shape:
        raise InputError(
            f"kmeans: the Fisher information must have the weight's shape {list(weight.shape)}, "
            f"got {list(fisher.shape)}"
        )
    largest = float(weight.abs().max())
    if not largest <= torch.finfo(torch.float16).max:  # written so that NaN fails
        raise SsmquantError(
            f"kmeans: weights reach {largest:g}, beyond the float16 tables; use int8 for this weight"
        )
    weight = weight.double().contiguous()
    fisher = fisher.to(weight.device)
    kept = _exact_positions(weight, fisher, scheme.sparse)
    weights = fisher.double().flatten().index_fill(0, kept, 0.0).view(weight.shape)
    table = weighted_kmeans(weight, weights, 2**scheme.bits).to(torch.float16)
    values = table.double()
    places = torch.searchsorted((values[:, 1:] + values[:, :-1]) / 2, weight)
    if scheme.sparse is None:
        return Codes(places.to(torch.int8), table)
    lacking = (weight - values.gather(1, places)).flatten()[kept]
    return Codes(places.to(torch.int8), table, sparse=Sparse(lacking.to(torch.float16), kept.to(torch.int32)))


def _exact_positions(weight: Tensor, fisher: Tensor, percent: float | None) -> Tensor:
    """Return the flat positions of the sparse part, ascending int64."""
    shape = (weight.shape[0], weight.shape[1])
    count = sparse_count(shape, percent or 0.0)
    sensitive = _largest(fisher.flatten(), min(count, sparse_count(shape, _SENSITIVE_PERCENT)))
    magnitude = weight.abs().flatten().index_fill(0, sensitive, -1.0)
    outliers = _largest(magnitude, count - len(sensitive))
    return torch.cat([sensitive, outliers]).sort().values


def _largest(x: Tensor, count: int) -> Tensor:
    """Return the positions of the largest elements; of equal ones, the first (which `topk` does not promise)."""
    smallest = x.topk(count).values[-1:] if count else x.new_full((1,), torch.inf)
    above, level = (x > smallest).nonzero().flatten(), (x == smallest).nonzero().flatten()
    return torch.cat([above, level[: count - len(above)]])
