"""C++ kernel of Mamba-1's scan."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel
from ssmquant.ops.selective_scan import selective_scan


def _supports(
    x: Tensor, x_scale: Tensor | None, dt: Tensor, dt_scale: Tensor | None, A: Tensor, *args: object
) -> str | None:
    return None if A.dtype == torch.float32 else f"A is {A.dtype}, float32 is supported"


def _selective_scan(
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
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> tuple[Tensor, Tensor]:
    if state_scale is not None:
        state_scale = state_scale.reshape((1, 1, *state_scale.shape)[-2:]).T.contiguous()
    y = torch.empty(x.shape, dtype=torch.float32)
    # The kernel's vectors lie along channels.
    after = state.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    x, dt, B, C, D, dt_bias = (t.contiguous() for t in (x, dt, B, C, D, dt_bias))
    native.selective_scan(
        x, x_scale, dt, dt_scale, A.T.contiguous(), B, B_scale, C, C_scale, D, dt_bias, after.clone(), state_scale,
        interval, y, after,
    )  # fmt: skip
    return y, after.transpose(1, 2).contiguous()


selective_scan.register(Kernel("cpu", "cpu", _selective_scan, _supports))
