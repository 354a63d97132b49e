"""`descent`: codes and scales chosen in turns for the least error of the layer's output.

For the second moment ``H = sum x x^T`` of its inputs, a change ``E`` of a weight changes the layer's output by
``tr(E H E^T)`` in sum of squares. GPTQ rounds each column once and never returns to it. Here its codes, or the nearest
ones where they are better, within absmax ranges or those of `clip`, are where the descent of a row begins. No step
of it can raise the error:

- codes: column by column, each weight takes the code of least error while all other columns stay (coordinate descent,
  as in QuantEase, arXiv 2309.01885);
- scales: group by group, each scale takes the value of least error for the codes as they are (least squares); where
  they are multiples of one a row, the best multiple, and then the best scale of the row. Zero points stay.

Rows are independent, so all of them are done at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ssmquant.formats import Codes
from ssmquant.quantizers.clip import clip, output_error
from ssmquant.quantizers.gptq import check_hessian, spread_errors, with_unseen
from ssmquant.quantizers.grid import Grid, a_column
from ssmquant.quantizers.progressive import nearest_multiple
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
        scheme: an integer scheme with a scale a group or a row.

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
    error, best = torch.stack([_output_error(w, start, h) for start in starts]).min(dim=0)
    found = _rows_of(starts, best)
    integers, step = found.integers.double(), found.steps.view(len(w), -1).double()
    grid, unit = Grid.of(found, scheme.bits, columns), found.scale.double()[:, None]
    before = error.sum()
    for _ in range(_ROUNDS):
        integers = _descend(w, integers, grid._replace(step=a_column(step, columns)), h)
        if found.multiplier is None:
            step = _refit(w, integers, step, h, lambda best, group: best.float().double())
        else:
            assert found.zero_point is not None
            step = _refit(w, integers, step, h, partial(_multiple, unit[:, 0], found.zero_point))
            step, unit = _refit_unit(w, integers, step, unit, h)
        after = output_error(w - integers * a_column(step, columns), h).sum()
        if after >= (1 - _ENOUGH) * before:
            break
        before = after
    found = found.at(integers.to(torch.int8))
    if found.multiplier is None:
        return found._replace(scale=step.float().view(found.scale.shape))
    return found._replace(scale=unit[:, 0].float(), multiplier=(step / unit).round().to(torch.uint8))


def _starts(weight: Tensor, hessian: Tensor, scheme: TensorScheme) -> list[Codes]:
    """Return where the descent of a row may begin: the nearest codes and GPTQ's, within two sets of ranges."""
    nearest = [clip(weight, hessian, scheme), round_to_nearest(weight, scheme)]
    grids = [Grid.of(start, scheme.bits, weight.shape[1]) for start in nearest]
    spread = [
        start.at(spread_errors(weight, hessian, grid)) for start, grid in zip(nearest, grids, strict=True)
    ]
    return nearest + spread


def _output_error(weight: Tensor, codes: Codes, h: Tensor) -> Tensor:
    """Return the error of each row's output."""
    steps = a_column(codes.steps.double(), weight.shape[1])
    return output_error(weight - codes.integers.double() * steps, h)


def _rows_of(starts: Sequence[Codes], best: Tensor) -> Codes:
    """Return each row of the codes that are best for it."""
    rows = torch.arange(len(best), device=best.device)
    return Codes(
        codes=torch.stack([start.codes for start in starts])[best, rows],
        scale=torch.stack([start.scale for start in starts])[best, rows],
        zero_point=_picked([start.zero_point for start in starts], best, rows),
        multiplier=_picked([start.multiplier for start in starts], best, rows),
    )


def _picked(parts: Sequence[Tensor | None], best: Tensor, rows: Tensor) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.stack(present)[best, rows] if present else None


def _descend(weight: Tensor, integers: Tensor, grid: Grid, h: Tensor) -> Tensor:
    """Return the integers after one visit to each column, those of large diagonal first."""
    order = h.diagonal().argsort(descending=True, stable=True)
    h, diagonal = h[order][:, order], h.diagonal()[order]
    # Columns as rows, so that each is contiguous.
    chosen = integers.T[order].contiguous()
    steps, lowest, highest = (part.T[order].contiguous() for part in grid)
    slope = h @ (weight.T[order] - chosen * steps)  # half the gradient of the error, negated
    for start in range(0, len(h), _BLOCK):
        part = slice(start, start + _BLOCK)
        inner, near = h[part, part], slope[part].clone()
        moved = torch.zeros_like(near)
        for j in range(len(near)):
            step, old = steps[start + j], chosen[start + j]
            new = (old + near[j] / (diagonal[start + j] * step)).round()
            new = new.clamp(lowest[start + j], highest[start + j])
            moved[j] = (new - old) * step
            near -= inner[j, :, None] * moved[j]
            chosen[start + j] = new
        slope -= h[:, part] @ moved
    return chosen[order.argsort()].T


def _refit(
    weight: Tensor,
    integers: Tensor,
    step: Tensor,
    h: Tensor,
    nearest: Callable[[Tensor, int], Tensor],
) -> Tensor:
    """Return the steps of least error, one group after another, as float64 with float32's precision.

    The error is a parabola of a step: of those that a group may have, the one nearest to its lowest point is the best.
    """
    columns, groups = weight.shape[1], step.shape[1]
    size = columns // groups
    slope = (weight - integers * a_column(step, columns)) @ h
    refitted = step.clone()
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        inside, old = integers[:, part], step[:, group]
        curvature = ((inside @ h[part, part]) * inside).sum(dim=1)
        best = old + (slope[:, part] * inside).sum(dim=1) / curvature
        # A group of zeros has no step, and a step below zero would be one of other integers.
        found = torch.where((curvature > 0) & (best > 0), nearest(best, group), old)
        slope -= ((found - old)[:, None] * inside) @ h[part]
        refitted[:, group] = found
    return refitted


def _multiple(unit: Tensor, zero_point: Tensor, step: Tensor, group: int) -> Tensor:
    """Return the multiples of the rows' units that are nearest to the steps of a group."""
    return nearest_multiple(step, unit, zero_point[:, group]) * unit


def _refit_unit(
    weight: Tensor, integers: Tensor, step: Tensor, unit: Tensor, h: Tensor
) -> tuple[Tensor, Tensor]:
    """Return steps and their units of least error while integers and multipliers stay, each row for itself."""
    whole = integers * a_column(step, weight.shape[1])
    towards = whole @ h
    curvature = (towards * whole).sum(dim=1, keepdim=True)
    factor = (towards * weight).sum(dim=1, keepdim=True) / curvature
    found = torch.where((curvature > 0) & (factor > 0), unit * factor, unit).float().double()
    return step / unit * found, found
