"""GPTQ: codes chosen one column after the other, each column's error spread over the columns still to come.

Frantar et al., arXiv 2210.17323, algorithm 1, as a pure function of the weight and the Hessian ``H = sum x x^T`` of its
input: it needs no model, and Hessians add up over shards of the calibration text.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ssmquant.errors import InputError, SsmquantError
from ssmquant.formats import Codes
from ssmquant.quantizers.grid import Grid
from ssmquant.quantizers.round_to_nearest import round_to_nearest
from ssmquant.scheme import TensorScheme

__all__ = ["check_hessian", "gptq", "spread_errors", "with_unseen"]

_LOG = logging.getLogger(__name__)
_DAMPING = 0.01  # section 3.3 of the paper
_MOST_DAMPING = 1.0  # beyond, little but the diagonal is left of the Hessian


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: TensorScheme,
    *,
    block: int = 128,
    damping: float = _DAMPING,
    act_order: bool = True,
) -> Codes:
    """Return codes that keep ``W x`` for the inputs that the Hessian has seen.

    The scales are those of the float weight, known before the first column (static groups), so columns may be taken in
    any order while groups stay neighbours in memory.

    Args:
        weight: float ``[N, K]``.
        hessian: ``sum x x^T`` over the inputs, ``[K, K]``; any positive factor of it gives the same codes.
        scheme: an integer scheme that `round_to_nearest` has codes for.
        block: see `spread_errors`.
        damping: see `spread_errors`.
        act_order: see `spread_errors`.

    Raises:
        InputError: the Hessian is not ``[K, K]``.
        SsmquantError: weight or Hessian is not finite, or the Hessian cannot be factorised with any damping.
    """
    nearest = round_to_nearest(weight, scheme)
    grid = Grid.of(nearest, scheme.bits, weight.shape[1])
    return nearest.at(spread_errors(weight, hessian, grid, block=block, damping=damping, act_order=act_order))


def spread_errors(
    weight: Tensor,
    hessian: Tensor,
    grid: Grid,
    *,
    block: int = 128,
    damping: float = _DAMPING,
    act_order: bool = True,
) -> Tensor:
    """Return the integers ``[N, K]`` of algorithm 1, int8, for steps that are given. Arithmetic is float64.

    Args:
        weight: float ``[N, K]``.
        hessian: ``sum x x^T`` over the inputs, ``[K, K]``.
        grid: what each weight may be.
        block: columns whose errors are spread at once; of no influence on the codes, up to ties.
        damping: share of the Hessian's mean diagonal (over inputs that were ever other than zero) that is added to the
            diagonal (percdamp); raised tenfold, with a warning in the log, while the Cholesky factorisation fails.
        act_order: take columns of large diagonal first.

    Raises:
        InputError: the Hessian is not ``[K, K]``.
        SsmquantError: the Hessian is not finite, or cannot be factorised with any damping.
    """
    columns = weight.shape[1]
    check_hessian(hessian, columns)
    h, mean = with_unseen(hessian.double())
    order = torch.arange(columns, device=h.device)
    if act_order:
        order = h.diagonal().argsort(descending=True, stable=True)
    upper = _inverse_factor(h[order][:, order], mean, damping)
    # Columns of the weight as rows, so that each is contiguous.
    w = weight.double().T[order].contiguous()
    steps, lowest, highest = (part.T[order] for part in grid)
    codes = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part, inner = w[start:stop], upper[start:stop, start:stop]
        errors = torch.empty_like(part)
        for j in range(stop - start):
            column = start + j
            step = steps[column]
            chosen = (part[j].float() * (1.0 / step)).round().clamp(lowest[column], highest[column])
            errors[j] = (part[j] - chosen.double() * step.double()) / inner[j, j]
            part[j:] -= inner[j, j:, None] * errors[j]
            codes[column] = chosen.to(torch.int8)
        w[stop:] -= upper[start:stop, stop:].T @ errors
    return codes[order.argsort()].T.contiguous()


def check_hessian(hessian: Tensor, columns: int) -> None:
    """Raise unless this is the second moment of that many inputs."""
    if hessian.shape != (columns, columns):
        raise InputError(
            f"gptq: the Hessian of a weight [N, {columns}] must have shape [{columns}, {columns}], "
            f"got {list(hessian.shape)}; observe the input of this layer"
        )
    if not torch.isfinite(hessian).all():
        raise SsmquantError(
            "gptq: the Hessian has NaN or infinity; the calibration text drives the float model out of range"
        )


def with_unseen(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Hessian with the mean diagonal of its seen inputs for those that were always zero; and that mean.

    Nothing is known of an unseen input and nothing is correlated with it: its column gets the nearest codes whatever
    its diagonal is. The mean leaves it out, so that damping does not depend on how many inputs are unseen.
    """
    diagonal = hessian.diagonal()
    seen = diagonal != 0
    mean = diagonal[seen].mean() if seen.any() else diagonal.new_ones(())
    return hessian + torch.where(seen, 0.0, mean).diag(), mean


def _inverse_factor(h: Tensor, mean: Tensor, damping: float) -> Tensor:
    """Return the upper Cholesky factor of ``(h + damping * mean * I)^-1``."""
    share = damping
    while True:
        damped = h + (share * mean).expand(len(h)).diag()
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed:
                found: Tensor = upper
                return found
        if share >= _MOST_DAMPING:
            raise SsmquantError(
                f"gptq: the Hessian is no second moment: it cannot be factorised even with damping {share:g}; "
                "calibrate on more text, or use round to nearest (quantizer: rtn) for this weight"
            )
        raised = min(max(10 * share, _DAMPING), _MOST_DAMPING)
        _LOG.warning("gptq: Cholesky failed at damping %g of the mean diagonal; trying %g", share, raised)
        share = raised
