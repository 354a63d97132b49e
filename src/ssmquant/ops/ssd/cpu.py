"""C++ kernel of Mamba-2's scan."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel
from ssmquant.ops.ssd import ssd

_MAX_ROWS = 2**15  # rows of the state with scales of their own, an int16 each


def _supports(
    x: Tensor, x_scale: Tensor | None, dt: Tensor, dt_scale: Tensor | None, A: Tensor, *args: object
) -> str | None:
    rows = x.shape[2] * x.shape[3]
    if rows > _MAX_ROWS:
        return f"a token has {rows} channels, at most {_MAX_ROWS} are supported"
    return None if A.dtype == torch.float32 else f"A is {A.dtype}, float32 is supported"


def _ssd(
    x: Tensor,
    x_scale: Tensor | None,
    dt: Tensor,
    dt_scale: Tensor | None,
    A: Tensor,
    B: Tensor,
    B_scale: Tensor | None,
    C: Tensor,
    C_scale: Tensor | None,
    D: Tensor,
    dt_bias: Tensor,
    dt_min: float,
    dt_max: float,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> tuple[Tensor, Tensor]:
    heads, headdim, d_state = state.shape[1:]
    table, row = None, None
    if state_scale is not None:
        table = state_scale.expand(heads, headdim, d_state).reshape(heads * headdim, d_state).contiguous()
        row = torch.arange(heads * headdim, dtype=torch.int16)
    y = torch.empty(x.shape, dtype=torch.float32)
    after = state.clone(memory_format=torch.contiguous_format)
    x, dt, A, B, C, D, dt_bias, state = (t.contiguous() for t in (x, dt, A, B, C, D, dt_bias, state))
    native.ssd(
        x, x_scale, dt, dt_scale, A, B, B_scale, C, C_scale, D, dt_bias, dt_min, dt_max, state, table, row, interval,
        y, after,
    )  # fmt: skip
    return y, after


ssd.register(Kernel("cpu", "cpu", _ssd, _supports))
