"""Decode with Mamba-2 on GPUs: two launches from in_proj's codes to the scan's output, and the rounding of states.

`step` does the convolution, dt and the scan of one token for every row and head: first what heads share, then the
heads. A reduced state is only read: the tokens since its last rounding wait as codes (their dt as floats), and with
cum_i the sum of the log decays up to token i,

    y_j = exp(cum_j) C_j S + sum_{i <= j} exp(cum_j - cum_i) dt_i (C_j B_i) x_i + D x_j.

`round_states` carries the waiting tokens into the states of rows whose interval is full, all layers in one launch. What
is kept of a sequence lies in slots: a row of a batch names its slot, and the slot knows its position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.hadamard.triton import power_of_two_above, split
from ssmquant.ops.ssd.triton import added, discretized, half, number
from ssmquant.ops.triton_numerics import (
    exp,
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    silu,
    wait_for_previous,
)

__all__ = ["Constants", "Memory", "Sizes", "round_states", "step"]

_HEADS = 8  # whose decays one program computes
_CHANNELS = 512  # of x that one program convolves


@dataclass(frozen=True)
class Sizes:
    """Sizes of a mixer: heads, headdim, ngroups, d_state, d_conv; ``interval`` 0 for a float32 state."""

    nheads: int
    headdim: int
    ngroups: int
    d_state: int
    d_conv: int
    interval: int

    @property
    def d_inner(self) -> int:
        """Channels of x."""
        return self.nheads * self.headdim

    @property
    def conv_dim(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.d_inner + 2 * self.ngroups * self.d_state


@dataclass(frozen=True)
class Constants:
    """What a layer's step needs beside its inputs; with a dimension of layers in front, of all layers.

    Attributes:
        conv_weight: int8 ``[conv_dim, d_conv]``.
        conv_scale: float32 ``[conv_dim]``, scale of the input times scale of the weight.
        conv_bias: float32 ``[conv_dim]``.
        conv_inverse: float32 ``[conv_dim]``, reciprocal of the output's scale.
        x_scale: float32 ``[H * P]``.
        B_scale: float32 ``[G]``.
        C_scale: float32 ``[G]``.
        dt_scale: float32 ``[H]``.
        dt_bias: float32 ``[H]``.
        A: float32 ``[H]``.
        D: float32 ``[H]``.
        state_scale: float32 ``[rows, N]`` of an int8 state: one row, or as many for each group and only its heads';
            ``[1, N]`` of no meaning for another state.
        state_rows: int32 ``[H, 4]``, the rows of ``state_scale`` that a head has.
        state_choice: int32 ``[H * P]``, which of its head's rows each channel has.
        state_row: int32 ``[H * P]``, the row that each channel has: ``state_rows`` at ``state_choice``.
        state_size: float32 ``[1]``, `size_of_states` of the scales.
    """

    conv_weight: Tensor
    conv_scale: Tensor
    conv_bias: Tensor
    conv_inverse: Tensor
    x_scale: Tensor
    B_scale: Tensor
    C_scale: Tensor
    dt_scale: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    state_scale: Tensor
    state_rows: Tensor
    state_choice: Tensor
    state_row: Tensor
    state_size: Tensor

    def layer(self, index: int) -> Constants:
        """Return one layer's of all layers' constants."""
        return Constants(**{name: tensor[index] for name, tensor in vars(self).items()})


@dataclass(frozen=True)
class Memory:
    """What is kept of sequences, in slots; with a dimension of layers in front, of all layers.

    Attributes:
        ring: int8 ``[slots, d_conv, conv_dim]``, the newest inputs of the convolution.
        state: ``[slots, H, P, N]``.
        x: int8 ``[slots, interval, H * P]``, of the tokens that wait for a rounding, as the next two.
        B: int8 ``[slots, interval, G * N]``.
        dt: float32 ``[slots, interval, H]``, after bias, softplus and limits.
    """

    ring: Tensor
    state: Tensor
    x: Tensor
    B: Tensor
    dt: Tensor

    def layer(self, index: int) -> Memory:
        """Return one layer's of all layers' memory."""
        return Memory(**{name: tensor[index] for name, tensor in vars(self).items()})


@triton.jit
def _digits(values, row):
    """Return int8 digits of float32 values in (-1, 1): in row r the digit r mod 4, worth ``2**(-6 - 7 (r mod 4))``."""
    rest = values * 64.0
    found = tl.zeros(values.shape, tl.float32)
    for index in tl.static_range(4):
        digit = (rest + 12582912.0) - 12582912.0
        found = tl.where(row % 4 == index, digit, found)
        rest = (rest - digit) * 128.0
    return found.to(tl.int8)


@triton.jit
def _old_taps(ring, weight, c, valid, position, CHANNELS: tl.constexpr, TAPS: tl.constexpr):
    """Return the convolution's integer sum over the tokens before this one."""
    total = tl.zeros(c.shape, tl.int32)
    for back in tl.static_range(1, TAPS):
        place = (position - back + TAPS) % TAPS
        old = tl.load(ring + place * CHANNELS + c, mask=valid & (position >= back), other=0)
        total += old.to(tl.int32) * tl.load(weight + c * TAPS + (TAPS - 1 - back), mask=valid, other=0).to(
            tl.int32
        )
    return total


@triton.jit
def _convolved(total, newest, weight, scale, bias, inverse, c, valid, TAPS: tl.constexpr):
    """Return the codes of the convolution's output, given the sum over the tokens before and the newest inputs."""
    total += newest.to(tl.int32) * tl.load(weight + c * TAPS + (TAPS - 1), mask=valid, other=0).to(tl.int32)
    y = total.to(tl.float32) * tl.load(scale + c, mask=valid, other=0.0) + tl.load(
        bias + c, mask=valid, other=0.0
    )
    return quantize(silu(y), tl.load(inverse + c, mask=valid, other=0.0))


@triton.jit
def _prepare(
    projected, slots, positions, conv_weight, conv_scale, conv_bias, conv_inverse, B_scale, C_scale, dt_scale,
    dt_bias, A, state_scale, ring, waiting_x, waiting_B, waiting_dt, convolved, asked, given, matches, digits, sizes,
    weights, gone, dt_min, dt_max, projected_row,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, TAPS: tl.constexpr,
    INTERVAL: tl.constexpr, CODED: tl.constexpr, SCALE_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr,
    N_TILE: tl.constexpr, TOKENS: tl.constexpr, HEADS_TILE: tl.constexpr, X_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Convolutions and decays: first programs for B and C of a group (and four rows of scales), for decays, for x."""
    INNER: tl.constexpr = HEADS * HEADDIM
    CHANNELS: tl.constexpr = INNER + 2 * GROUPS * D_STATE
    row = tl.program_id(1).to(tl.int64)
    # No early start for the scan: on an H200 it then read what the last programs here had not written yet.
    # Nothing but in_proj's output is written by the launches of this step that may still run: the rest is read ahead.
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + slot)
    j = position % INTERVAL if INTERVAL > 0 else 0
    i = tl.arange(0, TOKENS)
    projected += row * projected_row + INNER
    PARTS: tl.constexpr = (OWN_ROWS + 3) // 4 if CODED else 1
    OTHERS: tl.constexpr = GROUPS * PARTS + (HEADS + HEADS_TILE - 1) // HEADS_TILE
    if tl.program_id(0) >= OTHERS:
        c = (tl.program_id(0) - OTHERS) * X_TILE + tl.arange(0, X_TILE)
        in_c = c < INNER
        x_ring = ring + slot * (TAPS * CHANNELS)
        x_sum = _old_taps(x_ring, conv_weight, c, in_c, position, CHANNELS, TAPS)
        wait_for_previous(PDL)
        x_in = tl.load(projected + c, mask=in_c, other=0)
        x = _convolved(x_sum, x_in, conv_weight, conv_scale, conv_bias, conv_inverse, c, in_c, TAPS)
        tl.store(x_ring + position % TAPS * CHANNELS + c, x_in, mask=in_c)
        tl.store(convolved + row * INNER + c, x, mask=in_c)
        if INTERVAL > 0:
            tl.store(waiting_x + slot * (INTERVAL * INNER) + j * INNER + c, x, mask=in_c)
    elif tl.program_id(0) < GROUPS * PARTS:
        group = tl.program_id(0) // PARTS
        first = tl.program_id(0) % PARTS == 0
        n = tl.arange(0, N_TILE)
        in_n = n < D_STATE
        ring += slot * (TAPS * CHANNELS)
        B_channel = INNER + group * D_STATE + n
        C_channel = B_channel + GROUPS * D_STATE
        B_sum = _old_taps(ring, conv_weight, B_channel, in_n, position, CHANNELS, TAPS)
        C_sum = _old_taps(ring, conv_weight, C_channel, in_n, position, CHANNELS, TAPS)
        B_factor = tl.load(B_scale + group)
        C_factor = tl.load(C_scale + group)
        if INTERVAL > 0:
            B_home = waiting_B + slot * (INTERVAL * GROUPS * D_STATE) + group * D_STATE + n
            old_B = tl.load(
                B_home[None, :] + i[:, None] * (GROUPS * D_STATE),
                mask=(i < j)[:, None] & in_n[None, :],
                other=0,
            )
        wait_for_previous(PDL)
        B_in = tl.load(projected + B_channel, mask=in_n, other=0)
        C_in = tl.load(projected + C_channel, mask=in_n, other=0)
        B = _convolved(B_sum, B_in, conv_weight, conv_scale, conv_bias, conv_inverse, B_channel, in_n, TAPS)
        C = _convolved(C_sum, C_in, conv_weight, conv_scale, conv_bias, conv_inverse, C_channel, in_n, TAPS)
        newest_place = ring + position % TAPS * CHANNELS
        tl.store(newest_place + B_channel, B_in, mask=in_n & first)
        tl.store(newest_place + C_channel, C_in, mask=in_n & first)
        here = row * GROUPS + group
        scaled_C = C.to(tl.float32) * C_factor
        if INTERVAL > 0:
            tl.store(B_home + j * (GROUPS * D_STATE), B, mask=in_n & first)
            r = tl.arange(0, 16)
            first_row = tl.where(r[:, None] == 0, C[None, :], 0).to(tl.int8)
            old = tl.sum(tl.dot(first_row, tl.trans(old_B)), 0)
            own = tl.sum(B.to(tl.int32) * C.to(tl.int32), 0)
            match = tl.where(i == j, own, old).to(tl.float32) * (B_factor * C_factor)
            tl.store(matches + here * TOKENS + i, match, mask=first & (i < TOKENS))
        if CODED:
            # C times the state's scales, which lie along the sum, as integers: four digits for each row of scales.
            first_own = group * OWN_ROWS if SCALE_ROWS > OWN_ROWS else 0
            own_row = tl.program_id(0) % PARTS * 4 + r // 4
            known = (own_row < OWN_ROWS)[:, None] & in_n[None, :]
            scale = tl.load(
                state_scale + (first_own + own_row)[:, None] * D_STATE + n[None, :], mask=known, other=0.0
            )
            scaled = scale * scaled_C[None, :]
            size, inverse_size = power_of_two_above(tl.max(tl.abs(scaled), 1))
            digit = _digits(scaled * inverse_size[:, None], r[:, None])
            target = digits + ((here * OWN_ROWS + own_row) * 4 + r % 4)[:, None] * D_STATE + n[None, :]
            tl.store(target, digit, mask=known)
            tl.store(sizes + here * OWN_ROWS + own_row, size, mask=(own_row < OWN_ROWS) & (r % 4 == 0))
        else:
            tl.store(asked + here * D_STATE + n, scaled_C, mask=in_n)
            tl.store(given + here * D_STATE + n, B.to(tl.float32) * B_factor, mask=in_n)
    else:
        head = (tl.program_id(0) - GROUPS * PARTS) * HEADS_TILE + tl.arange(0, HEADS_TILE)
        in_heads = head < HEADS
        decay_rate = tl.load(A + head, mask=in_heads, other=0.0)
        step_scale = tl.load(dt_scale + head, mask=in_heads, other=0.0)
        bias = tl.load(dt_bias + head, mask=in_heads, other=0.0)
        dt_home = waiting_dt + slot * (INTERVAL * HEADS) + head
        # Tokens from the last to the first: the decay after a token is the sum over the tokens behind it, and as a sum
        # of terms of one sign it is never the small difference of large ones.
        k = TOKENS - 1 - i
        waits = (k < j)[None, :] & in_heads[:, None]
        steps = tl.load(dt_home[:, None] + k[None, :] * HEADS, mask=waits, other=0.0)
        behind = tl.load(
            dt_home[:, None] + (k + 1)[None, :] * HEADS,
            mask=(k + 1 < j)[None, :] & in_heads[:, None],
            other=0.0,
        )
        wait_for_previous(PDL)
        code = tl.load(projected + CHANNELS + head, mask=in_heads, other=0)
        new = discretized(code, step_scale, bias, dt_min, dt_max, in_heads)
        steps = tl.where(k[None, :] == j, new[:, None], steps)
        behind = tl.where(k[None, :] + 1 == j, new[:, None], behind)
        decay = tl.cumsum(behind * decay_rate[:, None], 1)
        place = (row * HEADS + head)[:, None] * TOKENS + k[None, :]
        tl.store(weights + place, exp(decay) * steps, mask=in_heads[:, None])
        tl.store(gone + row * HEADS + head, exp(tl.sum(steps, 1) * decay_rate), mask=in_heads)
        if INTERVAL > 0:
            tl.store(dt_home + j * HEADS, new, mask=in_heads)


@triton.jit
def _step(
    slots, positions, convolved, x_scale, D, state_rows, state_choice, state, waiting_x,
    asked, given, matches, digits, sizes, weights, gone, y,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr,
    INTERVAL: tl.constexpr, CODED: tl.constexpr, SCALE_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr,
    P_TILE: tl.constexpr, N_TILE: tl.constexpr, TOKENS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of one row."""
    INNER: tl.constexpr = HEADS * HEADDIM
    head = tl.program_id(0)
    group = head // (HEADS // GROUPS)
    row = tl.program_id(1).to(tl.int64)
    let_next_start(PDL)
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + slot)
    j = position % INTERVAL if INTERVAL > 0 else 0
    p = tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    i = tl.arange(0, TOKENS)
    r = tl.arange(0, 16)
    in_p, in_n = p < HEADDIM, n < D_STATE
    tile = in_p[:, None] & in_n[None, :]
    c = head * HEADDIM + p
    home = state + (slot * HEADS + head) * (HEADDIM * D_STATE) + p[:, None] * D_STATE + n[None, :]
    before = tl.load(home, mask=tile, other=0)
    x_home = waiting_x + slot * (INTERVAL * INNER) + c
    if INTERVAL > 0:
        old_x = tl.load(x_home[None, :] + i[:, None] * INNER, mask=(i < j)[:, None] & in_p[None, :], other=0)
    skip = tl.load(D + head)
    x_factor = tl.load(x_scale + c, mask=in_p, other=0.0)
    if CODED:
        choice = tl.load(state_choice + c, mask=in_p, other=0)
        own_row = tl.load(state_rows + head * 4 + r // 4)
        if SCALE_ROWS > OWN_ROWS:
            own_row -= group * OWN_ROWS
    wait_for_previous(PDL)
    new_x = number(tl.load(convolved + row * INNER + c, mask=in_p, other=0))
    here = row * GROUPS + group
    weight = tl.load(weights + (row * HEADS + head) * TOKENS + i, mask=i <= j, other=0.0)
    forgotten = tl.load(gone + row * HEADS + head)
    new_dt = tl.load(weights + (row * HEADS + head) * TOKENS + j)
    if CODED:
        digit = tl.load(
            digits + ((here * OWN_ROWS + own_row) * 4 + r % 4)[:, None] * D_STATE + n[None, :],
            mask=in_n[None, :], other=0,
        )  # fmt: skip
        worth = tl.load(sizes + here * OWN_ROWS + own_row) * tl.exp2(-6.0 - 7.0 * (r % 4).to(tl.float32))
    else:
        question = tl.load(asked + here * D_STATE + n, mask=in_n, other=0.0)
    if INTERVAL > 0:
        weight = weight * tl.load(matches + here * TOKENS + i, mask=i <= j, other=0.0)
        own = new_dt * tl.load(matches + here * TOKENS + j)
    if CODED:
        parts = tl.dot(before, tl.trans(digit)).to(tl.float32) * worth[None, :]
        carried = tl.sum(tl.where((r // 4)[None, :] == choice[:, None], parts, 0.0), 1)
    elif INTERVAL > 0:
        carried = tl.sum(before.to(tl.float32) * question[None, :], 1)
    if INTERVAL > 0:
        most, inverse_most = power_of_two_above(tl.max(tl.abs(weight)))
        high, low = split(weight * inverse_most)
        terms = tl.where(r[None, :] == 0, high[:, None], tl.where(r[None, :] == 1, low[:, None], 0.0))
        within = tl.sum(tl.dot(tl.trans(half(old_x)), terms.to(tl.float16)), 1) * most + new_x * own
        result = carried * forgotten + within * x_factor
    else:
        direction = tl.load(given + here * D_STATE + n, mask=in_n, other=0.0)
        h = before * forgotten + (new_x * x_factor * new_dt)[:, None] * direction[None, :]
        tl.store(home, h, mask=tile)
        result = tl.sum(h * question[None, :], 1)
    tl.store(y + row * INNER + c, result + skip * (new_x * x_factor), mask=in_p)


@triton.jit
def _round_states(
    slots, x_scale, B_scale, A, state_scale, state_row, state, waiting_x, waiting_B, waiting_dt,
    all_slots, scale_rows,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, INTERVAL: tl.constexpr,
    CODED: tl.constexpr, P_TILE: tl.constexpr, N_TILE: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    INNER: tl.constexpr = HEADS * HEADDIM
    head = tl.program_id(0)
    group = head // (HEADS // GROUPS)
    layer = tl.program_id(2).to(tl.int64)
    slot = layer * all_slots + tl.load(slots + tl.program_id(1))
    p = tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    i = tl.arange(0, TOKENS)
    in_p, in_n, there = p < HEADDIM, n < D_STATE, i < INTERVAL
    tile = in_p[:, None] & in_n[None, :]
    c = head * HEADDIM + p
    steps = tl.load(waiting_dt + (slot * INTERVAL + i) * HEADS + head, mask=there, other=0.0)
    x = tl.load(
        waiting_x + (slot * INTERVAL + i[:, None]) * INNER + c[None, :],
        mask=there[:, None] & in_p[None, :],
        other=0,
    )
    B = tl.load(
        waiting_B + ((slot * INTERVAL + i[:, None]) * GROUPS + group) * D_STATE + n[None, :],
        mask=there[:, None] & in_n[None, :], other=0,
    )  # fmt: skip
    home = state + (slot * HEADS + head) * (HEADDIM * D_STATE) + p[:, None] * D_STATE + n[None, :]
    kept = tl.load(home, mask=tile, other=0)
    h = kept.to(tl.float32)
    if CODED:
        which = tl.load(state_row + layer * INNER + c, mask=in_p, other=0) + layer * scale_rows
        scale = tl.load(state_scale + which[:, None] * D_STATE + n[None, :], mask=tile, other=1.0)
        h = h * scale
    x_factor = tl.load(x_scale + layer * INNER + c, mask=in_p, other=0.0)
    logs = (steps * tl.load(A + layer * HEADS + head)).to(tl.float64) * 1.4426950408889634
    total = tl.sum(logs, 0)
    largest, inverse_largest = power_of_two_above(tl.max(steps))
    weight = tl.exp2((total - tl.cumsum(logs, 0)).to(tl.float32)) * (steps * inverse_largest)
    new = added(x, weight, B) * (x_factor * (largest * tl.load(B_scale + layer * GROUPS + group)))[:, None]
    h = h * tl.exp2(total.to(tl.float32)) + new
    if CODED:
        tl.store(home, quantize(h, reciprocal(scale)), mask=tile)
    else:
        tl.store(home, h.to(kept.dtype), mask=tile)


def _tiles(sizes: Sizes) -> tuple[int, int, int]:
    """Return the tiles of headdim, d_state and waiting tokens."""
    return (
        max(16, triton.next_power_of_2(sizes.headdim)),
        max(32, triton.next_power_of_2(sizes.d_state)),
        max(32, triton.next_power_of_2(sizes.interval)),
    )


def step(
    projected: Tensor,
    slots: Tensor,
    positions: Tensor,
    constants: Constants,
    memory: Memory,
    sizes: Sizes,
    dt_limit: tuple[float, float],
    y: Tensor,
) -> None:
    """Run convolution and scan for one token of each row; keep what the next needs (positions stay).

    Args:
        projected: int8 ``[M, d_in_proj]``: z, x, B, C, dt.
        slots: int32 ``[M]``, the slot of each row, all different.
        positions: int32 ``[slots]``, tokens that each has seen before.
        constants: of the layer.
        memory: of the layer, updated.
        sizes: of the mixer.
        dt_limit: lower and upper limit of dt.
        y: float32 ``[M, H * P]``, written.
    """
    p_tile, n_tile, tokens = _tiles(sizes)
    c, m, s = constants, memory, sizes
    rows, own_rows = len(projected), max(len(c.state_scale) // s.ngroups, 1)
    coded = m.state.element_size() == 1
    new = y.new_empty
    convolved = new(rows, s.d_inner, dtype=torch.int8)
    asked, given = new(rows, s.ngroups, s.d_state), new(rows, s.ngroups, s.d_state)
    matches, weights, gone = new(rows, s.ngroups, tokens), new(rows, s.nheads, tokens), new(rows, s.nheads)
    digits = new(rows, s.ngroups, own_rows, 4, s.d_state, dtype=torch.int8)
    sizes_of_rows = new(rows, s.ngroups, own_rows)
    options = launch_options(projected)
    of_state = (s.interval, coded, len(c.state_scale), own_rows)
    parts = triton.cdiv(own_rows, 4) if coded else 1
    programs = s.ngroups * parts + triton.cdiv(s.nheads, _HEADS) + triton.cdiv(s.d_inner, _CHANNELS)
    _prepare[programs, rows](
        projected, slots, positions, c.conv_weight, c.conv_scale, c.conv_bias, c.conv_inverse, c.B_scale, c.C_scale,
        c.dt_scale, c.dt_bias, c.A, c.state_scale, m.ring, m.x, m.B, m.dt, convolved, asked, given, matches, digits,
        sizes_of_rows, weights, gone, *dt_limit, projected.stride(0),
        s.nheads, s.headdim, s.ngroups, s.d_state, s.d_conv, *of_state, n_tile, tokens, _HEADS, _CHANNELS,
        num_warps=4, **options,
    )  # fmt: skip
    _step[s.nheads, rows](
        slots, positions, convolved, c.x_scale, c.D, c.state_rows, c.state_choice, m.state, m.x,
        asked, given, matches, digits, sizes_of_rows, weights, gone, y,
        s.nheads, s.headdim, s.ngroups, s.d_state, *of_state, p_tile, n_tile, tokens,
        # One warp has nobody to wait for. (Four gave wrong results on an H200; see the test on the GPU.)
        num_warps=1 if s.interval else 4, **options,
    )  # fmt: skip


def round_states(slots: Tensor, constants: Constants, memory: Memory, sizes: Sizes) -> None:
    """Carry a full interval of waiting tokens into the states of some slots, in all layers.

    Args:
        slots: int32 ``[M]``, those whose position is a multiple of the interval.
        constants: of all layers.
        memory: of all layers, updated.
        sizes: of the mixers.
    """
    p_tile, n_tile, tokens = _tiles(sizes)
    c, m = constants, memory
    layers, all_slots = m.state.shape[:2]
    _round_states[sizes.nheads, len(slots), layers](
        slots, c.x_scale, c.B_scale, c.A, c.state_scale, c.state_row,
        m.state, m.x, m.B, m.dt, all_slots, c.state_scale.shape[1],
        sizes.nheads, sizes.headdim, sizes.ngroups, sizes.d_state, sizes.interval, m.state.element_size() == 1,
        p_tile, n_tile, tokens, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
