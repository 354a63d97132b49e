"""`clip`: round to nearest within the ranges of least output error (AWQ, arXiv 2306.00978, the authors' code).

The largest weights of a group set its scale. Where they matter little, a smaller range with finer codes keeps the
output better. Each group of each row chooses among its maximum shrunk by 0, 1/20, … 9/20.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.formats import Codes, restored
from ssmquant.quantizers.round_to_nearest import round_to_nearest
from ssmquant.scheme import TensorScheme

__all__ = ["clip", "output_error"]

_STEPS = 20
_TRIED = 10  # down to 11/20 of the maximum, as in the authors' code


def output_error(difference: Tensor, moment: Tensor) -> Tensor:
    """Return ``sum_t (difference @ x_t)**2`` of each row, from the second moment of the inputs.

    Args:
        difference: float ``[..., N, K]``, error of a weight.
        moment: ``sum_t x_t x_t^T``, ``[..., K, K]``, of the same dtype.

    Returns:
        ``[..., N]``.
    """
    return ((difference @ moment) * difference).sum(dim=-1)


def clip(weight: Tensor, hessian: Tensor, scheme: TensorScheme) -> Codes:
    """Return the codes nearest to a weight after clipping each group of each row.

    The authors measure a group's output on sampled tokens. Its squared error over all tokens is a quadratic form in the
    group's block of the second moment, which calibration has exactly.

    Args:
        weight: float ``[N, K]``.
        hessian: ``sum x x^T`` over the inputs, ``[K, K]``; any positive factor of it gives the same codes.
        scheme: an integer scheme with a scale a group or a row.
    """
    size = scheme.group_size or weight.shape[1]
    grouped = weight.unflatten(1, (-1, size))  # [N, groups, size]
    blocks = hessian.to(weight.dtype).unflatten(0, (-1, size)).unflatten(2, (-1, size))
    blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # [groups, size, size]
    largest = grouped.abs().amax(dim=2, keepdim=True)
    apart = scheme.model_copy(update={"scale_dtype": "float32"})  # so that groups can be tried apart

    def within(limit: Tensor, scheme: TensorScheme) -> Codes:
        return round_to_nearest(grouped.clamp(-limit, limit).flatten(1), scheme)

    best, least = largest, torch.full_like(largest[..., 0], torch.inf)
    for step in range(_TRIED):
        limit = largest * (1 - step / _STEPS)
        difference = restored(within(limit, apart), apart).view_as(grouped) - grouped
        error = output_error(difference.transpose(0, 1), blocks).T
        best = torch.where((error < least)[..., None], limit, best)
        least = torch.minimum(error, least)
    return within(best, scheme)
