"""Exact reference of Mamba-2's scan (arXiv 2405.21060, state-space duality), chunked as in section 6."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ssmquant import numerics
from ssmquant.ops import recurrent_state

__all__ = ["ssd"]

_CHUNK = 64


def ssd(
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
    """Return the scan's output and the state after it.

    ``h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T``, ``y_t = h_t C_t + D x_t``, with
    ``dt_t = clamp(softplus(dt_t + dt_bias), dt_min, dt_max)``; everything after dequantisation is float32,
    or float64 where every float operand is.

    Args:
        x: int8 or float ``[B, L, H, P]``.
        x_scale: float32 ``[1]`` or ``[H * P]``; None for a float x, and so for the other scales.
        dt: int8 or float ``[B, L, H]``, before bias and softplus.
        dt_scale: ``[1]`` or ``[H]``.
        A: float ``[H]``, negative.
        B: int8 or float ``[B, L, G, N]``.
        B_scale: ``[1]`` or ``[G * N]``.
        C: as B.
        C_scale: as B_scale.
        D: float ``[H]``.
        dt_bias: float ``[H]``.
        dt_min: lower limit of dt (dt_limit).
        dt_max: upper limit of dt.
        state: ``[B, H, P, N]`` before the first token: float32, float16 or int8.
        state_scale: float32, broadcastable to ``[H, P, N]``, for an int8 state.
        interval: tokens between two roundings of a reduced state (see `recurrent_state`); 0 for float32.

    Returns:
        y float32 ``[B, L, H, P]``, and the state: after all tokens, or, when reduced, after the last whole
        interval (the caller keeps and replays the tokens after it).
    """
    x = numerics.dequantize(x, _shaped(x_scale, x))
    B = numerics.dequantize(B, _shaped(B_scale, B))
    C = numerics.dequantize(C, _shaped(C_scale, C))
    dt = softplus(numerics.dequantize(dt, dt_scale) + dt_bias).clamp(dt_min, dt_max)
    h = recurrent_state.read(state, state_scale)
    kept = state.clone() if interval else None  # an op never hands an argument back
    outputs = []
    for part, rounds in recurrent_state.segments(x.shape[1], interval, _CHUNK):
        y, h = _chunk(x[:, part], dt[:, part], A, B[:, part], C[:, part], h)
        outputs.append(y)
        if rounds:
            kept = recurrent_state.write(h, state_scale, state.dtype)
            h = recurrent_state.read(kept, state_scale)
    return torch.cat(outputs, dim=1) + D[:, None] * x, h if kept is None else kept


def _shaped(scale: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a scale of all channels in the shape of the last two dimensions; a single one as it is."""
    return scale if scale is None or scale.numel() == 1 else scale.view(like.shape[-2:])


def _chunk(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return y (without the D term) ``[B, T, H, P]`` and the state after one chunk of T tokens."""
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    # [B, H, T], log of the decay from the chunk's start. In float64, because what counts are differences: after a token
    # that forgets nearly all, float32 sums are too large to tell small decays apart.
    decay = torch.cumsum((dt * A).double(), dim=1).transpose(1, 2)
    causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
    between = (decay[..., :, None] - decay[..., None, :]).to(x.dtype)  # [B, H, T, S]
    between = between.masked_fill(~causal, -torch.inf).exp()
    dx = (x * dt[..., None]).transpose(1, 2)  # [B, H, T, P]
    B, C = B.transpose(1, 2), C.transpose(1, 2)  # [B, G, T, N]
    scores = (C @ B.transpose(-1, -2)).repeat_interleave(heads // groups, dim=1) * between
    grouped = h.reshape(batch, groups, heads // groups * headdim, d_state)
    carried = (C @ grouped.transpose(-1, -2)).view(batch, groups, length, heads // groups, headdim)
    carried = carried.transpose(2, 3).reshape(batch, heads, length, headdim)
    from_start, to_end = decay.to(x.dtype).exp(), (decay[..., -1:] - decay).to(x.dtype).exp()
    y = scores @ dx + carried * from_start[..., None]
    added = (dx * to_end[..., None]).view(batch, groups, heads // groups, length, headdim).transpose(-1, -2)
    h = h * from_start[..., -1, None, None] + (added @ B[:, :, None]).view(h.shape)
    return y.transpose(1, 2), h
