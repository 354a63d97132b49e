"""`descent`: codes and scales chosen in turns for the least error of the layer's output.

For the second moment ``H = sum x x^T`` of its inputs, a change ``E`` of a weight changes the layer's output by
``tr(E H E^T)`` in sum of squares. GPTQ rounds each column once and never returns to it. Here its codes, or the nearest
ones where they are better, within absmax ranges or those of `clip`, are where the descent of a row begins. No step
of it can raise the error:

- codes: column by column, each weight takes the code of least error while all other columns stay (coordinate descent,
  as in QuantEase, arXiv 2309.01885);
- scales: group by group, each scale takes the value of least error for the codes as they are (least squares).

Rows are independent, so all of them are done at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.formats import Codes
from ssmquant.quantizers.clip import clip, output_error
from ssmquant.quantizers.gptq import check_hessian, column_steps, spread_errors, with_unseen
from ssmquant.quantizers.round_to_nearest import round_to_nearest
from ssmquant.scheme import TensorScheme

__all__ = ["descent"]

_DAMPING = 0.01  # of the mean diagonal, as GPTQ's: what calibration has not seen should not be forgotten
_ROUNDS = 4
_ENOUGH = 0.01  # a round that gains less than this share of the error is the last
_BLOCK = 64  # columns whose effect on all others is taken at once; of no influence on the codes, up to ties


def descent(weight: Tensor, hessian: Tensor, scheme: TensorScheme) -> Codes:
    """Return codes and scales that keep ``W x`` for the inputs that the Hessian has seen. Arithmetic is float64.

    Args:
        weight: float ``[N, K]``.
        hessian: ``sum x x^T`` over the inputs, ``[K, K]``; any positive factor of it gives the same codes.
        scheme: a symmetric integer scheme with a scale a group or a row.

    Raises:
        InputError: the Hessian is not ``[K, K]``.
        SsmquantError: weight or Hessian is not finite, or the Hessian cannot be factorised.
    """
    columns = weight.shape[1]
    check_hessian(hessian, columns)
    w = weight.double()
    h, mean = with_unseen(hessian.double())
    h = h / mean + _DAMPING * torch.eye(columns, dtype=h.dtype, device=h.device)
    starts = _starts(w, hessian, scheme)
    codes = torch.stack([start.codes.double() for start in starts])
    scale = torch.stack([start.scale.view(len(w), -1).double() for start in starts])
    error, best = output_error(w - codes * _steps(scale, columns), h).min(dim=0)
    rows = torch.arange(len(w), device=w.device)
    codes, scale = codes[best, rows], scale[best, rows]
    before = error.sum()
    for _ in range(_ROUNDS):
        codes = _descend(w, codes, _steps(scale, columns), h, scheme.bits)
        scale = _refit(w, codes, scale, h)
        after = output_error(w - codes * _steps(scale, columns), h).sum()
        if after >= (1 - _ENOUGH) * before:
            break
        before = after
    return Codes(codes.to(torch.int8), scale.float().view(starts[0].scale.shape))


def _starts(weight: Tensor, hessian: Tensor, scheme: TensorScheme) -> list[Codes]:
    """Return where the descent of a row may begin: the nearest codes and GPTQ's, within two sets of ranges."""
    nearest = [clip(weight, hessian, scheme), round_to_nearest(weight, scheme)]
    columns = weight.shape[1]
    bits = [scheme.bits] * columns
    spread = [
        Codes(spread_errors(weight, hessian, column_steps(n.scale, columns), bits), n.scale) for n in nearest
    ]
    return nearest + spread


def _steps(scale: Tensor, columns: int) -> Tensor:
    """Return the scale of every weight, ``[..., K]``, from ``[..., groups]``."""
    return scale.repeat_interleave(columns // scale.shape[-1], dim=-1)


def _descend(weight: Tensor, codes: Tensor, steps: Tensor, h: Tensor, bits: int) -> Tensor:
    """Return the codes after one visit to each column, those of large diagonal first."""
    limit = numerics.code_limit(bits)
    order = h.diagonal().argsort(descending=True, stable=True)
    h, diagonal = h[order][:, order], h.diagonal()[order]
    # Columns as rows, so that each is contiguous.
    chosen, steps = codes.T[order].contiguous(), steps.T[order].contiguous()
    slope = h @ (weight.T[order] - chosen * steps)  # half the gradient of the error, negated
    for start in range(0, len(h), _BLOCK):
        part = slice(start, start + _BLOCK)
        inner, near = h[part, part], slope[part].clone()
        moved = torch.zeros_like(near)
        for j in range(len(near)):
            step, old = steps[start + j], chosen[start + j]
            new = (old + near[j] / (diagonal[start + j] * step)).round().clamp(-limit, limit)
            moved[j] = (new - old) * step
            near -= inner[j, :, None] * moved[j]
            chosen[start + j] = new
        slope -= h[:, part] @ moved
    return chosen[order.argsort()].T


def _refit(weight: Tensor, codes: Tensor, scale: Tensor, h: Tensor) -> Tensor:
    """Return scales of least error, one group after another, as float64 with float32's precision."""
    columns, groups = weight.shape[1], scale.shape[1]
    size = columns // groups
    slope = (weight - codes * _steps(scale, columns)) @ h
    refitted = scale.clone()
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        inside = codes[:, part]
        curvature = ((inside @ h[part, part]) * inside).sum(dim=1)
        best = scale[:, group] + (slope[:, part] * inside).sum(dim=1) / curvature
        # A group of zeros has no scale, and a scale below zero would be one of other codes.
        found = torch.where((curvature > 0) & (best > 0), best, scale[:, group]).float().double()
        slope -= ((found - scale[:, group])[:, None] * inside) @ h[part]
        refitted[:, group] = found
    return refitted
