"""GPTQ: codes chosen one column after the other, each column's error spread over the columns still to come.

Frantar et al., arXiv 2210.17323, algorithm 1, as a pure function of the weight and the Hessian ``H = sum x x^T`` of its
input: it needs no model, and Hessians add up over shards of the calibration text.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import SsmquantError
from ssmquant.formats import Codes
from ssmquant.quantizers.round_to_nearest import weight_scale
from ssmquant.scheme import TensorScheme

__all__ = ["gptq"]

_LOG = logging.getLogger(__name__)
_MOST_DAMPING = 1.0


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: TensorScheme,
    *,
    block: int = 128,
    damping: float = 0.01,
    act_order: bool = True,
) -> Codes:
    """Return codes that keep ``W x`` for the inputs that the Hessian has seen.

    The scales are those of the float weight (static groups), so columns may be taken in any order.

    Args:
        weight: float ``[N, K]``.
        hessian: ``sum x x^T`` over the inputs, ``[K, K]``; any positive factor of it gives the same codes.
        scheme: a symmetric integer scheme: per-tensor, per-channel or per-group.
        block: columns whose errors are spread at once.
        damping: share of the Hessian's mean diagonal that is added to the diagonal (percdamp); raised tenfold, with a
            warning in the log, while the Cholesky factorisation fails.
        act_order: take columns of large diagonal first.

    Raises:
        SsmquantError: the Hessian is not finite, or cannot be factorised with any damping.
    """
    scale = weight_scale(weight, scheme)
    columns = weight.shape[1]
    w, h = weight.double().clone(), hessian.double().clone()
    if not torch.isfinite(h).all():
        raise SsmquantError(
            "gptq: the Hessian has NaN or infinity; the calibration text drives the float model out of range"
        )
    unseen = (
        h.diagonal() == 0
    )  # an input that was always zero: its column does not matter, and must not be singular
    h.diagonal()[unseen] = 1.0
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if act_order else torch.arange(columns)
    w, h = w[:, order], h[order][:, order]
    per_column = _per_column(scale, columns)[:, order]
    upper = _inverse_factor(h, damping)
    codes = torch.empty(weight.shape, dtype=torch.int8)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        errors = torch.empty(w.shape[0], stop - start, dtype=w.dtype)
        for j in range(start, stop):
            step = per_column[:, j]
            codes[:, j] = numerics.quantize(w[:, j], step, scheme.bits)
            error = (w[:, j] - codes[:, j].double() * step.double()) / upper[j, j]
            w[:, j:stop] -= error[:, None] * upper[j, j:stop]
            errors[:, j - start] = error
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    restored = torch.empty_like(codes)
    restored[:, order] = codes
    return Codes(restored, scale)


def _per_column(scale: Tensor, columns: int) -> Tensor:
    """Return the scale of every weight's column, ``[1 or N, K]``."""
    if scale.dim() == 2:
        return scale.repeat_interleave(columns // scale.shape[1], dim=1)
    return scale[:, None].expand(-1, columns)


def _inverse_factor(h: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of ``(h + damping * mean(diag) * I)^-1``."""
    mean = h.diagonal().mean()
    share = damping
    while share <= _MOST_DAMPING:
        damped = h + share * mean * torch.eye(len(h), dtype=h.dtype)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                found: Tensor = factor
                return found
        _LOG.warning("gptq: Cholesky failed at damping %g of the mean diagonal; trying %g", share, share * 10)
        share *= 10
    raise SsmquantError(
        f"gptq: the Hessian cannot be factorised even with damping {_MOST_DAMPING}; "
        "calibrate on more text, or use round to nearest for this weight"
    )
