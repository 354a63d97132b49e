"""Mamba-1's selective scan on GPUs: parallel over rows and channels, token after token.

A state that is rounded at every token cannot be scanned in any other order; so the loop is over tokens, eight at a time
to have their inputs under way together, and a program holds the states of a few channels in registers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.registry import Kernel
from ssmquant.ops.selective_scan import selective_scan
from ssmquant.ops.triton_numerics import (
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    softplus,
    wait_for_previous,
)

__all__ = ["advanced", "scan_codes"]

_UNROLLED = 8
_CHANNELS = 32


@triton.jit
def advanced(h, x, dt, decay_rate, B):
    """Return the state ``[C, N]`` after one token.

    Args:
        h: float32 ``[C, N]`` before it.
        x: float32 ``[C]``.
        dt: float32 ``[C]``.
        decay_rate: float32 ``[C, N]``, A times log2(e).
        B: float32 ``[N]``.
    """
    return h * tl.exp2(dt[:, None] * decay_rate) + (dt * x)[:, None] * B[None, :]


@triton.jit
def _scan(
    x, x_scale, dt, dt_scale, A, B, B_scale, C, C_scale, D, dt_bias, state, state_scale, state_row, slots, y, after,
    length, channels, interval, x_row, x_token, dt_row, dt_token, B_row, B_token, y_row, y_token,
    D_STATE: tl.constexpr, X_STEP: tl.constexpr, DT_STEP: tl.constexpr, STATE_STEP: tl.constexpr,
    ROUNDS: tl.constexpr, CODED: tl.constexpr, FRESH: tl.constexpr,
    C_TILE: tl.constexpr, N_TILE: tl.constexpr, UNROLLED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * C_TILE + tl.arange(0, C_TILE)
    n = tl.arange(0, N_TILE)
    in_c, in_n = c < channels, n < D_STATE
    tile = in_c[:, None] & in_n[None, :]
    place = c[:, None] * D_STATE + n[None, :]
    decay_rate = tl.load(A + place, mask=tile, other=0.0) * 1.4426950408889634
    x_factor = tl.load(x_scale + c * X_STEP, mask=in_c, other=0.0)
    dt_factor = tl.load(dt_scale + c * DT_STEP, mask=in_c, other=0.0)
    B_factor = tl.load(B_scale + n * STATE_STEP, mask=in_n, other=0.0)
    C_factor = tl.load(C_scale + n * STATE_STEP, mask=in_n, other=0.0)
    bias = tl.load(dt_bias + c, mask=in_c, other=0.0)
    skip = tl.load(D + c, mask=in_c, other=0.0)
    if CODED:
        which = tl.load(state_row + c, mask=in_c, other=0)
        scale = tl.load(state_scale + which[:, None] * D_STATE + n[None, :], mask=tile, other=1.0)
        inverse = reciprocal(scale)
    wait_for_previous(PDL)
    let_next_start(PDL)
    slot = row if slots is None else tl.load(slots + row).to(tl.int64)
    home = slot * channels * D_STATE + place
    kept = tl.load(state + home, mask=tile & (not FRESH), other=0)
    h = kept.to(tl.float32)
    if CODED:
        h = h * scale
    x += row * x_row + c
    dt += row * dt_row + c
    B += row * B_row + n
    C += row * B_row + n
    k = tl.arange(0, UNROLLED)
    for first in range(0, length, UNROLLED):
        results = tl.zeros((UNROLLED, C_TILE), tl.float32)
        for ahead in tl.static_range(UNROLLED):
            t = first + ahead
            there = t < length
            new_x = tl.load(x + t * x_token, mask=in_c & there, other=0).to(tl.float32) * x_factor
            new_dt = tl.load(dt + t * dt_token, mask=in_c & there, other=0).to(tl.float32) * dt_factor
            new_B = tl.load(B + t * B_token, mask=in_n & there, other=0).to(tl.float32) * B_factor
            new_C = tl.load(C + t * B_token, mask=in_n & there, other=0).to(tl.float32) * C_factor
            # A token beyond the end changes nothing: its dt is 0.
            steps = tl.where(there, softplus(new_dt + bias), 0.0)
            h = advanced(h, new_x, steps, decay_rate, new_B)
            result = tl.sum(h * new_C[None, :], 1) + skip * new_x
            results = tl.where(k[:, None] == ahead, result[None, :], results)
            if ROUNDS:
                rounds = there & ((t + 1) % interval == 0)
                if CODED:
                    rounded = quantize(h, inverse)
                    h = tl.where(rounds, rounded.to(tl.float32) * scale, h)
                else:
                    rounded = h.to(kept.dtype)
                    h = tl.where(rounds, rounded.to(tl.float32), h)
                kept = tl.where(rounds, rounded, kept)
        token = first + k
        target = y + row * y_row + token[:, None] * y_token + c[None, :]
        tl.store(target, results, mask=(token < length)[:, None] & in_c[None, :])
    tl.store(after + home, kept if ROUNDS else h, mask=tile)


def scan_codes(
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
    state: Tensor,
    state_scale: Tensor | None,
    state_row: Tensor | None,
    interval: int,
    y: Tensor,
    after: Tensor,
    *,
    slots: Tensor | None = None,
    fresh: bool = False,
) -> None:
    """Run the scan; write ``y`` and the state after the last rounding (after all tokens for a float32 state).

    Args:
        x: int8 ``[B, L, C]``; a token's channels are neighbours, tokens and rows may lie apart (so in the rest).
        x_scale: float32 ``[1]`` or ``[C]``.
        dt: int8 ``[B, L, C]``.
        dt_scale: as x_scale.
        A: float32 ``[C, N]``, contiguous.
        B: int8 ``[B, L, N]``.
        B_scale: float32 ``[1]`` or ``[N]``.
        C: as B, with B's strides.
        C_scale: as B_scale.
        D: float32 ``[C]``.
        dt_bias: float32 ``[C]``.
        state: ``[B, C, N]`` before the first token, contiguous: float32, float16 or int8.
        state_scale: float32 ``[rows, N]``, contiguous, for an int8 state.
        state_row: int ``[C]``, the row of ``state_scale`` that each channel has.
        interval: tokens between two roundings; 0 for float32.
        y: float32 ``[B, L, C]``, channels of a token neighbours.
        after: as ``state``, written; may be ``state``.
        slots: int32 ``[B]``, where in ``state`` and ``after`` each row is; None for its own place.
        fresh: whether the sequences begin here: ``state`` is then taken for zeros and not read.
    """
    batch, length, channels = x.shape
    d_state = B.shape[2]
    state_step = int(B_scale.numel() > 1)
    _scan[triton.cdiv(channels, _CHANNELS), batch](
        x, x_scale, dt, dt_scale, A, B, B_scale, C, C_scale, D, dt_bias, state, state_scale, state_row, slots, y, after,
        length, channels, interval, x.stride(0), x.stride(1), dt.stride(0), dt.stride(1), B.stride(0), B.stride(1),
        y.stride(0), y.stride(1),
        d_state, int(x_scale.numel() > 1), int(dt_scale.numel() > 1), state_step,
        bool(interval), state_scale is not None, fresh, _CHANNELS, triton.next_power_of_2(d_state), _UNROLLED,
        num_warps=4, **launch_options(x),
    )  # fmt: skip


def _run(
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
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> tuple[Tensor, Tensor]:
    x, dt, B, C = x.contiguous(), dt.contiguous(), B.contiguous(), C.contiguous()
    channels, d_state = A.shape
    state_row = None
    if state_scale is not None:
        state_scale = state_scale.expand(channels, d_state).contiguous()
        state_row = torch.arange(channels, dtype=torch.int32, device=x.device)
    width = max(B_scale.numel(), C_scale.numel())
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    after = torch.empty(state.shape, dtype=state.dtype, device=x.device)
    scan_codes(
        x, x_scale, dt, dt_scale, A.contiguous(), B, B_scale.expand(width).contiguous(),
        C, C_scale.expand(width).contiguous(), D, dt_bias, state.contiguous(), state_scale, state_row, interval,
        y, after,
    )  # fmt: skip
    return y, after


def _supports(
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
) -> str | None:
    if x_scale is None or dt_scale is None or B_scale is None or C_scale is None:
        return "scans codes; x, dt, B and C need scales"
    if A.shape[1] > 64:
        return f"holds states of at most 64 columns, not {A.shape[1]}"
    return None


selective_scan.register(Kernel("triton", "cuda", _run, _supports))
