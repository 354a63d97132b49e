# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""`quantize_static` and `quantize_per_token` on GPUs: one pass over the rows, bit for bit the reference."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.quantize import quantize_per_token, quantize_static
from ssmquant.ops.registry import Kernel
from ssmquant.ops.triton_numerics import (
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    wait_for_previous,
)

__all__ = ["codes_per_token", "codes_static"]

_BLOCK = 1024  # columns a program, or a step of one


@triton.jit
def _static(x, scale, out, columns, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """BLOCK columns of one row."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    at = tl.program_id(0).to(tl.int64) * columns + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scales = tl.load(scale + column, mask=inside, other=1.0) if CHANNELS else tl.load(scale)
    tl.store(out + at, quantize(value, reciprocal(scales)), mask=inside)


@triton.jit
def _per_token(x, out, scale_out, columns, LIMIT: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One row: its largest magnitude, then its codes."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    step = tl.arange(0, BLOCK)
    largest = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, columns, BLOCK):
        inside = begin + step < columns
        value = tl.load(x + row * columns + begin + step, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
    # In float64, as numerics.scale_from_absmax: the quotient is rounded to float32 once.
    absmax = tl.max(largest, axis=0).to(tl.float64)
    scale = tl.where(absmax > 0.0, absmax, 1.0) / LIMIT
    scale = tl.minimum(tl.maximum(scale, 1.1754943508222875e-38), 8.507059173023462e37).to(tl.float32)
    tl.store(scale_out + row, scale)
    inverse = reciprocal(scale)
    for begin in range(0, columns, BLOCK):
        inside = begin + step < columns
        at = row * columns + begin + step
        value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, quantize(value, inverse, LIMIT), mask=inside)


def codes_static(x: Tensor, scale: Tensor, *, out: Tensor) -> None:
    """Write the codes of ``x`` under static scales; all contiguous.

    Args:
        x: float ``[..., C]``.
        scale: float32 ``[1]`` or ``[C]``.
        out: int8, shaped like x.
    """
    columns = x.shape[-1]
    if not x.numel():
        return
    block = min(triton.next_power_of_2(columns), _BLOCK)
    _static[(x.numel() // columns, triton.cdiv(columns, block))](
        x, scale, out, columns, CHANNELS=scale.numel() > 1, BLOCK=block, **launch_options(x)
    )


def codes_per_token(x: Tensor, bits: int, *, out: Tensor, scale_out: Tensor) -> None:
    """Write codes and scale of each row; all contiguous.

    Args:
        x: float ``[..., C]``.
        bits: width of the codes, 2 to 8.
        out: int8, shaped like x.
        scale_out: float32 ``[..., 1]``.
    """
    columns = x.shape[-1]
    if not x.numel():
        return
    _per_token[(x.numel() // columns,)](
        x, out, scale_out, columns, LIMIT=float((1 << (bits - 1)) - 1),
        BLOCK=min(triton.next_power_of_2(columns), _BLOCK), **launch_options(x),
    )  # fmt: skip


def _run_static(x: Tensor, scale: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    codes_static(x, scale.contiguous(), out=out)
    return out


def _run_per_token(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    x = x.contiguous()
    out = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    codes_per_token(x, bits, out=out, scale_out=scale)
    return out, scale


def _supports_any(*args: Any) -> str | None:
    return None


quantize_static.register(Kernel("triton", "cuda", _run_static, _supports_any))
quantize_per_token.register(Kernel("triton", "cuda", _run_per_token, _supports_any))
