"""Decode with Mamba-1 on GPUs: the scan of one token for many rows, states in slots.

A state that is rounded at every token, or kept in float32, is updated in place. One with a longer interval is only
read, and the tokens since its last rounding, kept as codes, are replayed from it; the interval's last token rounds it.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.selective_scan.triton import advanced
from ssmquant.ops.triton_numerics import (
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    softplus,
    wait_for_previous,
)

__all__ = ["step"]

_CHANNELS = 32


@triton.jit
def _step(
    x, x_scale, dt, dt_scale, A, B, C, B_scale, C_scale, D, dt_bias, slots, positions,
    state, state_scale, state_row, waiting_x, waiting_dt, waiting_B, y, channels, projected_row,
    D_STATE: tl.constexpr, INTERVAL: tl.constexpr, CODED: tl.constexpr,
    C_TILE: tl.constexpr, N_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * C_TILE + tl.arange(0, C_TILE)
    n = tl.arange(0, N_TILE)
    in_c, in_n = c < channels, n < D_STATE
    tile = in_c[:, None] & in_n[None, :]
    place = c[:, None] * D_STATE + n[None, :]
    let_next_start(PDL)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + slot)
    decay_rate = tl.load(A + place, mask=tile, other=0.0) * 1.4426950408889634
    x_factor = tl.load(x_scale + c, mask=in_c, other=0.0)
    dt_factor = tl.load(dt_scale + c, mask=in_c, other=0.0)
    B_factor = tl.load(B_scale)
    bias = tl.load(dt_bias + c, mask=in_c, other=0.0)
    home = state + slot * channels * D_STATE + place
    kept = tl.load(home, mask=tile, other=0)
    h = kept.to(tl.float32)
    if CODED:
        which = tl.load(state_row + c, mask=in_c, other=0)
        scale = tl.load(state_scale + which[:, None] * D_STATE + n[None, :], mask=tile, other=1.0)
        h = h * scale
    if INTERVAL > 1:
        j = position % INTERVAL
        for i in range(j):
            token = slot * INTERVAL + i
            old_x = tl.load(waiting_x + token * channels + c, mask=in_c, other=0).to(tl.float32) * x_factor
            old_dt = tl.load(waiting_dt + token * channels + c, mask=in_c, other=0).to(tl.float32) * dt_factor
            old_B = tl.load(waiting_B + token * D_STATE + n, mask=in_n, other=0).to(tl.float32) * B_factor
            h = advanced(h, old_x, softplus(old_dt + bias), decay_rate, old_B)
    wait_for_previous(PDL)
    x_code = tl.load(x + row * channels + c, mask=in_c, other=0)
    dt_code = tl.load(dt + row * channels + c, mask=in_c, other=0)
    B_code = tl.load(B + row * projected_row + n, mask=in_n, other=0)
    asked = tl.load(C + row * projected_row + n, mask=in_n, other=0).to(tl.float32) * tl.load(C_scale)
    new_x = x_code.to(tl.float32) * x_factor
    steps = softplus(dt_code.to(tl.float32) * dt_factor + bias)
    h = advanced(h, new_x, steps, decay_rate, B_code.to(tl.float32) * B_factor)
    result = tl.sum(h * asked[None, :], 1) + tl.load(D + c, mask=in_c, other=0.0) * new_x
    tl.store(y + row * channels + c, result, mask=in_c)
    full = True
    if INTERVAL > 1:
        full = j == INTERVAL - 1
        token = slot * INTERVAL + j
        tl.store(waiting_x + token * channels + c, x_code, mask=in_c)
        tl.store(waiting_dt + token * channels + c, dt_code, mask=in_c)
        tl.store(waiting_B + token * D_STATE + n, B_code, mask=in_n & (tl.program_id(0) == 0))
    if CODED:
        tl.store(home, quantize(h, reciprocal(scale)), mask=tile & full)
    else:
        tl.store(home, h.to(kept.dtype), mask=tile & full)


def step(
    x: Tensor,
    x_scale: Tensor,
    dt: Tensor,
    dt_scale: Tensor,
    A: Tensor,
    B: Tensor,
    B_scale: Tensor,
    C: Tensor,
    C_scale: Tensor,
    D: Tensor,
    dt_bias: Tensor,
    slots: Tensor,
    positions: Tensor,
    state: Tensor,
    state_scale: Tensor | None,
    state_row: Tensor | None,
    waiting_x: Tensor,
    waiting_dt: Tensor,
    waiting_B: Tensor,
    interval: int,
    y: Tensor,
) -> None:
    """Run the scan for one token of each row; keep what the next needs (positions stay).

    Args:
        x: int8 ``[M, C]``, contiguous.
        x_scale: float32 ``[C]``.
        dt: int8 ``[M, C]``, contiguous.
        dt_scale: float32 ``[C]``.
        A: float32 ``[C, N]``.
        B: int8 ``[M, N]``; rows may lie apart.
        B_scale: float32 ``[1]``.
        C: as B, with B's stride.
        C_scale: float32 ``[1]``.
        D: float32 ``[C]``.
        dt_bias: float32 ``[C]``.
        slots: int32 ``[M]``, the slot of each row, all different.
        positions: int32 ``[slots]``, tokens that each has seen before.
        state: ``[slots, C, N]``, updated.
        state_scale: float32 ``[rows, N]`` of an int8 state.
        state_row: int32 ``[C]``, the row of ``state_scale`` of each channel.
        waiting_x: int8 ``[slots, interval, C]``, tokens since the last rounding, updated where ``interval`` is above 1.
        waiting_dt: int8 ``[slots, interval, C]``.
        waiting_B: int8 ``[slots, interval, N]``.
        interval: tokens between two roundings; 0 for float32.
        y: float32 ``[M, C]``, written.
    """
    rows, channels = x.shape
    d_state = A.shape[1]
    _step[triton.cdiv(channels, _CHANNELS), rows](
        x, x_scale, dt, dt_scale, A, B, C, B_scale, C_scale, D, dt_bias, slots, positions,
        state, state_scale, state_row, waiting_x, waiting_dt, waiting_B, y, channels, B.stride(0),
        d_state, interval, state_scale is not None, _CHANNELS, triton.next_power_of_2(d_state),
        num_warps=2, **launch_options(x),
    )  # fmt: skip
