"""Mamba-1's selective scan on GPUs: parallel over rows and channels, token after token.

A state that is rounded at every token cannot be scanned in any other order; so the loop is over tokens, sixteen at a
time to have their inputs under way together, and a warp holds the states of a few channels in registers. What does not
depend on the state is computed beforehand.
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

__all__ = ["advanced", "scan_into"]

_UNROLLED = 16
_CHANNELS = 8


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
    return tl.fma(h, tl.exp2(dt[:, None] * decay_rate), (dt * x)[:, None] * B[None, :])


@triton.jit
def _factor(scale, channel, inside):
    """Return what codes of some channels are multiplied by; 1 for floats, which come without a scale."""
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + channel, mask=inside, other=0.0)
    return factor


@triton.jit
def _prepare(
    dt, dt_scale, dt_bias, B, B_scale, C, C_scale, steps, selected, length, channels,
    dt_row, dt_token, B_row, B_token, C_row, C_token,
    D_STATE: tl.constexpr, DT_STEP: tl.constexpr, B_STEP: tl.constexpr, C_STEP: tl.constexpr,
    TOKENS: tl.constexpr, C_TILE: tl.constexpr, N_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write dt ``[B, L, C]`` after softplus, and B and C ``[B, L, 2, N_TILE]``, as float32."""
    row = tl.program_id(2).to(tl.int64)
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    c = tl.program_id(1) * C_TILE + tl.arange(0, C_TILE)[None, :]
    n = tl.arange(0, N_TILE)[None, :]
    factor = _factor(dt_scale, c * DT_STEP, c < channels)
    bias = tl.load(dt_bias + c, mask=c < channels, other=0.0)
    wait_for_previous(PDL)
    let_next_start(PDL)
    valid = (t < length) & (c < channels)
    codes = tl.load(dt + row * dt_row + t * dt_token + c, mask=valid, other=0)
    step = softplus(codes.to(tl.float32) * factor + bias)
    tl.store(steps + (row * length + t) * channels + c, step, mask=valid)
    if tl.program_id(1) == 0:
        in_n = (t < length) & (n < D_STATE)
        target = selected + (row * length + t) * (2 * N_TILE) + n
        new_B = tl.load(B + row * B_row + t * B_token + n, mask=in_n, other=0).to(tl.float32)
        new_C = tl.load(C + row * C_row + t * C_token + n, mask=in_n, other=0).to(tl.float32)
        new_B = new_B * _factor(B_scale, n * B_STEP, n < D_STATE)
        new_C = new_C * _factor(C_scale, n * C_STEP, n < D_STATE)
        tl.store(target, new_B, mask=t < length)
        tl.store(target + N_TILE, new_C, mask=t < length)


@triton.jit
def _tokens(
    h, kept, first, x, steps, selected, y, n, in_c, x_factor, skip, decay_rate, scale, inverse,
    length, channels, x_token, y_token,
    INTERVAL: tl.constexpr, CODED: tl.constexpr, HALF: tl.constexpr, N_TILE: tl.constexpr,
    TOKENS: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Run some tokens, all of them there if ``WHOLE``; return the state and what it was at its last rounding."""
    # All loads stand before the first store, which the compiler would not move them over.
    new_x, new_dt, new_B, new_C = (), (), (), ()
    for ahead in tl.static_range(TOKENS):
        t = first + ahead
        there = in_c if WHOLE else in_c & (t < length)
        new_x += (tl.load(x + t * x_token, mask=there, other=0),)  # type: ignore[assignment]  # Triton's tuples grow
        # A token beyond the end changes nothing: its dt is 0.
        new_dt += (tl.load(steps + t * channels, mask=there, other=0.0),)  # type: ignore[assignment]  # Triton's tuples grow
        place = selected + t * (2 * N_TILE) + n
        new_B += (tl.load(place) if WHOLE else tl.load(place, mask=(n >= 0) & (t < length), other=0.0),)  # type: ignore[assignment]  # Triton's tuples grow
        place += N_TILE
        new_C += (tl.load(place) if WHOLE else tl.load(place, mask=(n >= 0) & (t < length), other=0.0),)  # type: ignore[assignment]  # Triton's tuples grow
    for ahead in tl.static_range(TOKENS):
        t = first + ahead
        there = WHOLE or t < length
        input = new_x[ahead].to(tl.float32) * x_factor
        h = advanced(h, input, new_dt[ahead], decay_rate, new_B[ahead])
        result = tl.sum(h * new_C[ahead][None, :], 1) + skip * input
        tl.store(y + t * y_token, result, mask=in_c & there)
        if INTERVAL > 0 and (TOKENS % INTERVAL != 0 or (ahead + 1) % INTERVAL == 0):
            if CODED:
                rounded = quantize(h, inverse).to(tl.float32) * scale
            elif HALF:
                rounded = h.to(tl.float16).to(tl.float32)
            if WHOLE and TOKENS % INTERVAL == 0:
                h = rounded
                kept = rounded
            else:
                rounds = there & ((t + 1) % INTERVAL == 0)
                h = tl.where(rounds, rounded, h)
                kept = tl.where(rounds, rounded, kept)
    return h, kept


@triton.jit
def _scan(
    x, x_scale, steps, selected, A, D, state, state_scale, state_row, slots, y, after,
    length, channels, x_row, x_token, y_row, y_token,
    D_STATE: tl.constexpr, X_STEP: tl.constexpr, INTERVAL: tl.constexpr, CODED: tl.constexpr, FRESH: tl.constexpr,
    C_TILE: tl.constexpr, N_TILE: tl.constexpr, TOKENS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = state.dtype.element_ty == tl.float16
    row = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * C_TILE + tl.arange(0, C_TILE)
    n = tl.arange(0, N_TILE)
    in_c, in_n = c < channels, n < D_STATE
    tile = in_c[:, None] & in_n[None, :]
    place = c[:, None] * D_STATE + n[None, :]
    decay_rate = tl.load(A + place, mask=tile, other=0.0) * 1.4426950408889634
    x_factor = _factor(x_scale, c * X_STEP, in_c)
    skip = tl.load(D + c, mask=in_c, other=0.0)
    scale = decay_rate
    inverse = decay_rate
    if CODED:
        which = tl.load(state_row + c, mask=in_c, other=0)
        scale = tl.load(state_scale + which[:, None] * D_STATE + n[None, :], mask=tile, other=1.0)
        inverse = reciprocal(scale)
    wait_for_previous(PDL)
    let_next_start(PDL)
    slot = row if slots is None else tl.load(slots + row).to(tl.int64)
    home = slot * channels * D_STATE + place
    h = tl.load(state + home, mask=tile & (not FRESH), other=0).to(tl.float32)
    if CODED:
        h = h * scale
    kept = h
    x += row * x_row + c
    y += row * y_row + c
    steps += row * length * channels + c
    selected += row * length * (2 * N_TILE)
    whole = length // TOKENS * TOKENS
    for first in range(0, whole, TOKENS):
        h, kept = _tokens(
            h, kept, first, x, steps, selected, y, n, in_c, x_factor, skip, decay_rate, scale, inverse,
            length, channels, x_token, y_token, INTERVAL, CODED, HALF, N_TILE, TOKENS, True,
        )  # fmt: skip
    if whole < length:
        h, kept = _tokens(
            h, kept, whole, x, steps, selected, y, n, in_c, x_factor, skip, decay_rate, scale, inverse,
            length, channels, x_token, y_token, INTERVAL, CODED, HALF, N_TILE, TOKENS, False,
        )  # fmt: skip
    result = kept if INTERVAL > 0 else h
    tl.store(after + home, quantize(result, inverse) if CODED else result, mask=tile)


def scan_into(
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
        x: int8 or float32 ``[B, L, C]``; a token's channels are neighbours, tokens and rows may lie apart (so in the
            rest).
        x_scale: float32 ``[1]`` or ``[C]``; None for floats, and so for the other scales.
        dt: int8 or float32 ``[B, L, C]``.
        dt_scale: as x_scale.
        A: float32 ``[C, N]``, contiguous.
        B: int8 or float32 ``[B, L, N]``.
        B_scale: float32 ``[1]`` or ``[N]``.
        C: as B.
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
    n_tile = triton.next_power_of_2(d_state)
    steps = torch.empty((batch, length, channels), dtype=torch.float32, device=x.device)
    selected = torch.empty((batch, length, 2, n_tile), dtype=torch.float32, device=x.device)
    options = launch_options(x)
    _prepare[triton.cdiv(length, 16), triton.cdiv(channels, 128), batch](
        dt, dt_scale, dt_bias, B, B_scale, C, C_scale, steps, selected, length, channels,
        dt.stride(0), dt.stride(1), B.stride(0), B.stride(1), C.stride(0), C.stride(1),
        d_state, _step(dt_scale), _step(B_scale), _step(C_scale), 16, 128, n_tile, num_warps=4, **options,
    )  # fmt: skip
    _scan[triton.cdiv(channels, _CHANNELS), batch](
        x, x_scale, steps, selected, A, D, state, state_scale, state_row, slots, y, after,
        length, channels, x.stride(0), x.stride(1), y.stride(0), y.stride(1),
        d_state, _step(x_scale), interval, state_scale is not None, fresh,
        _CHANNELS, n_tile, _UNROLLED, num_warps=1, **options,
    )  # fmt: skip


def _step(scale: Tensor | None) -> int:
    """Return how far the scale of the next channel is: 0 for one scale."""
    return int(scale is not None and scale.numel() > 1)


def _channels_together(tensor: Tensor) -> Tensor:
    """Return a tensor whose last dimension lies close together; tokens and rows may lie apart."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _run(
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
    x, dt, B, C = (_channels_together(tensor) for tensor in (x, dt, B, C))
    channels, d_state = A.shape
    state_row = None
    if state_scale is not None:
        state_scale = state_scale.expand(channels, d_state).contiguous()
        state_row = torch.arange(channels, dtype=torch.int32, device=x.device)
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    after = torch.empty(state.shape, dtype=state.dtype, device=x.device)
    scan_into(
        x, x_scale, dt, dt_scale, A.contiguous(), B, B_scale, C, C_scale, D, dt_bias, state.contiguous(),
        state_scale, state_row, interval, y, after,
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
    if A.dtype != torch.float32:
        return f"scans in float32, not {A.dtype}"
    if A.shape[1] > 64:
        return f"holds states of at most 64 columns, not {A.shape[1]}"
    return None


selective_scan.register(Kernel("triton", "cuda", _run, _supports))
