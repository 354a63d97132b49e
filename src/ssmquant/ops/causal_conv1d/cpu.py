"""C++ kernel of the causal convolution."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.ops.causal_conv1d import causal_conv1d
from ssmquant.ops.native import native
from ssmquant.ops.registry import Kernel


def _supports(x: Tensor, *args: object) -> str | None:
    return f"x is {x.dtype}, int8 and float32 are supported" if x.dtype == torch.float64 else None


def _causal_conv1d(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
    scale_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    taps = weight.shape[1]
    history = torch.cat([state.transpose(1, 2), x], dim=1)  # [B, d_conv + L, C]
    integer = x_scale is not None and weight_scale is not None
    if not integer:
        weight = numerics.dequantize(weight, None if weight_scale is None else weight_scale[:, None]).float()
    out = torch.empty(x.shape, dtype=torch.float32 if scale_out is None else torch.int8)
    native.causal_conv1d(
        history[:, 1:].contiguous(),  # the oldest input of the state has met all taps
        None if x_scale is None else x_scale.contiguous(),
        weight.T.contiguous(),
        x_scale * weight_scale if x_scale is not None and weight_scale is not None else None,
        None if bias is None else bias.float().contiguous(),
        None if scale_out is None else 1.0 / scale_out,
        out,
    )
    return out, history[:, -taps:].transpose(1, 2).contiguous()


causal_conv1d.register(Kernel("cpu", "cpu", _causal_conv1d, _supports))
