"""Exact reference of Mamba-1's selective scan (arXiv 2312.00752, algorithm 2), chunked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

from ssmquant import numerics
from ssmquant.ops import recurrent_state

__all__ = ["selective_scan"]

_CHUNK = 32
_LANES = 8  # a chunk is scanned as 8 lanes side by side, then the lanes are joined


def selective_scan(
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
    """Return the scan's output and the state after it.

    ``h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t``, ``y_t = h_t C_t + D x_t`` a channel, with
    ``dt_t = softplus(dt_t + dt_bias)``; everything after dequantisation is float32, or float64 where every float
    operand is.

    Args:
        x: int8 or float ``[B, L, C]`` (C = d_inner).
        x_scale: float32 ``[1]`` or ``[C]``; None for a float x, and so for the other scales.
        dt: int8 or float ``[B, L, C]``, before bias and softplus.
        dt_scale: as x_scale.
        A: float ``[C, N]``, negative.
        B: int8 or float ``[B, L, N]``.
        B_scale: ``[1]`` or ``[N]``.
        C: as B.
        C_scale: as B_scale.
        D: float ``[C]``.
        dt_bias: float ``[C]``.
        state: ``[B, C, N]`` before the first token: float32, float16 or int8.
        state_scale: float32, broadcastable to ``[C, N]``, for an int8 state.
        interval: tokens between two roundings of a reduced state (see `recurrent_state`); 0 for float32.

    Returns:
        y float32 ``[B, L, C]``, and the state: after all tokens, or, when reduced, after the last whole
        interval (the caller keeps and replays the tokens after it).
    """
    x = numerics.dequantize(x, x_scale)
    B, C = numerics.dequantize(B, B_scale), numerics.dequantize(C, C_scale)
    dt = softplus(numerics.dequantize(dt, dt_scale) + dt_bias)
    h = recurrent_state.read(state, state_scale)
    kept = state.clone() if interval else None  # an op never hands an argument back
    outputs = []
    for part, rounds in recurrent_state.segments(x.shape[1], interval, _CHUNK):
        log_decay = dt[:, part, :, None] * A  # [B, T, C, N]
        added = (dt[:, part] * x[:, part])[..., None] * B[:, part, None, :]
        states = _states(log_decay.exp(), added, h)
        outputs.append((states @ C[:, part, :, None]).squeeze(-1))
        h = states[:, -1].clone()  # a view would keep the states of all tokens in memory
        if rounds:
            kept = recurrent_state.write(h, state_scale, state.dtype)
            h = recurrent_state.read(kept, state_scale)
    return torch.cat(outputs, dim=1) + D * x, h if kept is None else kept


def _states(decay: Tensor, added: Tensor, h: Tensor) -> Tensor:
    """Return every ``h_t = decay_t * h_{t-1} + added_t``.

    The chunk is cut into lanes of equal length. All lanes are scanned side by side from a zero state together with the
    product of their decays (at most 1, so nothing overflows); then each lane gets its share of the state before it.

    Args:
        decay: ``[B, T, C, N]``.
        added: ``[B, T, C, N]``.
        h: ``[B, C, N]``.

    Returns:
        ``[B, T, C, N]``.
    """
    length = decay.shape[1]
    steps = -(-length // _LANES)
    spare = -length % steps
    decay = pad(decay, (0, 0, 0, 0, 0, spare)).unflatten(1, (-1, steps))  # [B, lanes, steps, C, N]
    added = pad(added, (0, 0, 0, 0, 0, spare)).unflatten(1, (-1, steps))
    local, product = [added[:, :, 0]], [decay[:, :, 0]]
    for t in range(1, steps):
        local.append(decay[:, :, t] * local[-1] + added[:, :, t])
        product.append(decay[:, :, t] * product[-1])
    before = [h]
    for lane in range(decay.shape[1] - 1):
        before.append(product[-1][:, lane] * before[-1] + local[-1][:, lane])
    carried = torch.stack(before, dim=1)[:, :, None]  # [B, lanes, 1, C, N]
    states = torch.stack(local, dim=2) + torch.stack(product, dim=2) * carried
    return states.flatten(1, 2)[:, :length]
