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

from ssmquant.ops.hadamard.triton import fast_silu, power_of_two_above
from ssmquant.ops.ssd.triton import added, discretized, number
from ssmquant.ops.triton_numerics import (
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    wait_for_previous,
)

__all__ = ["BLOCK", "Constants", "Memory", "Sizes", "in_blocks", "in_order", "round_states", "step"]

_CHANNELS = 512  # of x that one program convolves
BLOCK = 16
"""Waiting tokens of a channel that lie together in `Memory.x`."""


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
        x: int8 ``[slots, ceil(interval / 16), H * P, 16]``, of the tokens that wait for a rounding, as the next two;
            16 tokens of a channel lie together, since they are summed over (`in_blocks`, `in_order`).
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


def in_blocks(x: Tensor) -> Tensor:
    """Return codes ``[..., T, C]`` as `Memory.x` has them, ``[..., ceil(T / 16), C, 16]``, filled up with zeros."""
    padded = torch.nn.functional.pad(x, (0, 0, 0, -x.shape[-2] % BLOCK))
    blocks: Tensor = padded.unflatten(-2, (-1, BLOCK)).transpose(-1, -2)
    return blocks


def in_order(x: Tensor) -> Tensor:
    """Return codes ``[..., blocks, C, 16]`` of `Memory.x` as ``[..., 16 * blocks, C]``."""
    return x.transpose(-1, -2).flatten(-3, -2)


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
    return quantize(fast_silu(y), tl.load(inverse + c, mask=valid, other=0.0))


@triton.jit
def _store_digits(values, target, stride, valid, COUNT: tl.constexpr):
    """Store rows of float32 values as COUNT int8 digits, ``stride`` apart; return each row's size.

    Digit d is worth ``2**(-6 - 7 d)`` of the size, a power of two; at most half of the last digit's worth is lost.
    """
    size, inverse_size = power_of_two_above(tl.max(tl.abs(values), 1))
    rest = values * inverse_size[:, None] * 64.0  # in this order: 64 times the largest reciprocal is infinite
    for index in tl.static_range(COUNT):
        digit = (rest + 12582912.0) - 12582912.0
        tl.store(target + index * stride, digit.to(tl.int8), mask=valid)
        rest = (rest - digit) * 128.0
    return size


@triton.jit
def _prepare(
    projected, slots, positions, conv_weight, conv_scale, conv_bias, conv_inverse, B_scale, C_scale, dt_scale,
    dt_bias, A, state_scale, ring, waiting_x, waiting_B, waiting_dt, convolved, asked, given,
    asked_digits, asked_sizes, token_digits, token_sizes, own, gone, dt_min, dt_max, projected_row,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, TAPS: tl.constexpr,
    INTERVAL: tl.constexpr, CODED: tl.constexpr, SCALE_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr,
    N_TILE: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, HEADS_TILE: tl.constexpr, X_TILE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """What heads share: first programs for some heads of a group, for four rows of its scales, then for x."""
    INNER: tl.constexpr = HEADS * HEADDIM
    CHANNELS: tl.constexpr = INNER + 2 * GROUPS * D_STATE
    OF_GROUP: tl.constexpr = HEADS // GROUPS
    PARTS: tl.constexpr = (OF_GROUP + HEADS_TILE - 1) // HEADS_TILE
    SCALE_PARTS: tl.constexpr = (OWN_ROWS + 3) // 4 if CODED else 0
    let_next_start(PDL)
    program = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    # Nothing but in_proj's output is written by the launches of this step that may still run: the rest is read ahead.
    slot = tl.load(slots + row).to(tl.int64)
    position = tl.load(positions + slot)
    j = position % INTERVAL if INTERVAL > 0 else 0
    projected += row * projected_row + INNER
    ring += slot * (TAPS * CHANNELS)
    newest = ring + position % TAPS * CHANNELS
    n = tl.arange(0, N_TILE)
    in_n = n < D_STATE
    if program >= GROUPS * (PARTS + SCALE_PARTS):
        c = (program - GROUPS * (PARTS + SCALE_PARTS)) * X_TILE + tl.arange(0, X_TILE)
        in_c = c < INNER
        x_sum = _old_taps(ring, conv_weight, c, in_c, position, CHANNELS, TAPS)
        wait_for_previous(PDL)
        x_in = tl.load(projected + c, mask=in_c, other=0)
        x = _convolved(x_sum, x_in, conv_weight, conv_scale, conv_bias, conv_inverse, c, in_c, TAPS)
        tl.store(newest + c, x_in, mask=in_c)
        tl.store(convolved + row * INNER + c, x, mask=in_c)
        if INTERVAL > 0:
            block = slot * ((INTERVAL + BLOCK - 1) // BLOCK) + j // BLOCK
            tl.store(waiting_x + (block * INNER + c) * BLOCK + j % BLOCK, x, mask=in_c)
    elif program >= GROUPS * PARTS:
        # C times the state's scales, which lie along the sum, as integers: four digits for each row of scales, digit d
        # worth 2**(-6 - 7 d) of the row's size.
        group = (program - GROUPS * PARTS) // SCALE_PARTS
        own_row = (program - GROUPS * PARTS) % SCALE_PARTS * 4 + tl.arange(0, 4)
        known = (own_row < OWN_ROWS)[:, None] & in_n[None, :]
        first_row = group * OWN_ROWS if SCALE_ROWS > OWN_ROWS else 0
        scale = tl.load(
            state_scale + (first_row + own_row)[:, None] * D_STATE + n[None, :], mask=known, other=0.0
        )
        scale *= tl.load(C_scale + group)
        C_channel = INNER + (GROUPS + group) * D_STATE + n
        C_sum = _old_taps(ring, conv_weight, C_channel, in_n, position, CHANNELS, TAPS)
        wait_for_previous(PDL)
        C_in = tl.load(projected + C_channel, mask=in_n, other=0)
        C = _convolved(C_sum, C_in, conv_weight, conv_scale, conv_bias, conv_inverse, C_channel, in_n, TAPS)
        scaled = scale * number(C)[None, :]
        here = (row * GROUPS + group) * OWN_ROWS + own_row
        into = asked_digits + (here * 4)[:, None] * D_STATE + n[None, :]
        tl.store(asked_sizes + here, _store_digits(scaled, into, D_STATE, known, 4), mask=own_row < OWN_ROWS)
    else:
        group = program // PARTS
        first = program % PARTS == 0
        place = program % PARTS * HEADS_TILE + tl.arange(0, HEADS_TILE)
        in_heads = place < OF_GROUP
        head = group * OF_GROUP + place
        # Tokens from the last to the first: the decay after a token is the sum over the tokens behind it, and as a sum
        # of terms of one sign it is never the small difference of large ones.
        k = TOKENS - 1 - tl.arange(0, TOKENS)
        decay_rate = tl.load(A + head, mask=in_heads, other=0.0)
        step_scale = tl.load(dt_scale + head, mask=in_heads, other=0.0)
        bias = tl.load(dt_bias + head, mask=in_heads, other=0.0)
        dt_home = waiting_dt + slot * (INTERVAL * HEADS) + head
        B_channel = INNER + group * D_STATE + n
        C_channel = B_channel + GROUPS * D_STATE
        B_home = waiting_B + slot * (INTERVAL * GROUPS * D_STATE) + group * D_STATE + n
        if INTERVAL > 0:
            old_B = tl.load(
                B_home[None, :] + k[:, None] * (GROUPS * D_STATE),
                mask=(k < j)[:, None] & in_n[None, :],
                other=0,
            )
            times = dt_home[:, None] + k[None, :] * HEADS
            steps = tl.load(times, mask=(k < j)[None, :] & in_heads[:, None], other=0.0)
            behind = tl.load(times + HEADS, mask=(k + 1 < j)[None, :] & in_heads[:, None], other=0.0)
        B_sum = _old_taps(ring, conv_weight, B_channel, in_n, position, CHANNELS, TAPS)
        C_sum = _old_taps(ring, conv_weight, C_channel, in_n, position, CHANNELS, TAPS)
        B_factor = tl.load(B_scale + group)
        C_factor = tl.load(C_scale + group)
        wait_for_previous(PDL)
        B_in = tl.load(projected + B_channel, mask=in_n, other=0)
        C_in = tl.load(projected + C_channel, mask=in_n, other=0)
        code = tl.load(projected + CHANNELS + head, mask=in_heads, other=0)
        B = _convolved(B_sum, B_in, conv_weight, conv_scale, conv_bias, conv_inverse, B_channel, in_n, TAPS)
        C = _convolved(C_sum, C_in, conv_weight, conv_scale, conv_bias, conv_inverse, C_channel, in_n, TAPS)
        tl.store(newest + B_channel, B_in, mask=in_n & first)
        tl.store(newest + C_channel, C_in, mask=in_n & first)
        new = discretized(code, step_scale, bias, dt_min, dt_max, in_heads)
        of_head = row * HEADS + head
        rate = decay_rate * 1.4426950408889634
        if INTERVAL > 0:
            tl.store(B_home + j * (GROUPS * D_STATE), B, mask=in_n & first)
            tl.store(dt_home + j * HEADS, new, mask=in_heads)
            both = B_factor * C_factor
            row_of_C = tl.where(tl.arange(0, 16)[:, None] == 0, C[None, :], 0).to(tl.int8)
            match = tl.sum(tl.dot(row_of_C, tl.trans(old_B)), 0).to(tl.float32) * both
            own_match = tl.sum(B.to(tl.int32) * C.to(tl.int32), 0).to(tl.float32) * both
            behind = tl.where(k[None, :] + 1 == j, new[:, None], behind)
            # The hardware's exponential is off by as many ulp as its exponent is large, and then the result is small.
            weight = tl.exp2(tl.cumsum(behind * rate[:, None], 1)) * steps * match[None, :]
            target = token_digits + (of_head * (4 * TOKENS))[:, None] + k[None, :]
            weight_size = _store_digits(weight, target, TOKENS, in_heads[:, None], 3)
            tl.store(token_sizes + of_head, weight_size, mask=in_heads)
            tl.store(own + of_head, new * own_match, mask=in_heads)
            tl.store(gone + of_head, tl.exp2((tl.sum(steps, 1) + new) * rate), mask=in_heads)
        else:
            tl.store(own + of_head, new, mask=in_heads)
            tl.store(gone + of_head, tl.exp2(new * rate), mask=in_heads)
        if not CODED:
            of_group = (row * GROUPS + group) * D_STATE + n
            tl.store(asked + of_group, number(C) * C_factor, mask=in_n & first)
            tl.store(given + of_group, number(B) * B_factor, mask=in_n & first)


@triton.jit
def _step(
    slots, positions, convolved, x_scale, D, state_rows, state_choice, state, waiting_x,
    asked, given, asked_digits, asked_sizes, token_digits, token_sizes, own, gone, y,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr,
    INTERVAL: tl.constexpr, CODED: tl.constexpr, SCALE_ROWS: tl.constexpr, OWN_ROWS: tl.constexpr,
    P_TILE: tl.constexpr, N_TILE: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One head of one row."""
    INNER: tl.constexpr = HEADS * HEADDIM
    head = tl.program_id(0)
    group = head // (HEADS // GROUPS)
    row = tl.program_id(1).to(tl.int64)
    let_next_start(PDL)
    slot = tl.load(slots + row).to(tl.int64)
    p = tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    i = tl.arange(0, TOKENS)
    r = tl.arange(0, 16)
    in_p, in_n = p < HEADDIM, n < D_STATE
    tile = in_p[:, None] & in_n[None, :]
    c = head * HEADDIM + p
    home = state + (slot * HEADS + head) * (HEADDIM * D_STATE) + p[:, None] * D_STATE + n[None, :]
    before = tl.load(home, mask=tile, other=0)
    if INTERVAL > 0:
        j = tl.load(positions + slot) % INTERVAL
        block = slot * ((INTERVAL + BLOCK - 1) // BLOCK) + i // BLOCK
        x_home = waiting_x + (block[None, :] * INNER + c[:, None]) * BLOCK + i[None, :] % BLOCK
        begun = i // BLOCK * BLOCK < j  # whole blocks: what waits in them for later is multiplied by zeros
        old_x = tl.load(x_home, mask=begun[None, :] & in_p[:, None], other=0)
    skip = tl.load(D + head)
    x_factor = tl.load(x_scale + c, mask=in_p, other=0.0)
    if CODED:
        choice = tl.load(state_choice + c, mask=in_p, other=0)
        own_row = tl.load(state_rows + head * 4 + r // 4)
        if SCALE_ROWS > OWN_ROWS:
            own_row -= group * OWN_ROWS
        own_row += (row * GROUPS + group) * OWN_ROWS
    wait_for_previous(PDL)
    of_head = row * HEADS + head
    new_x = number(tl.load(convolved + row * INNER + c, mask=in_p, other=0)) * x_factor
    own_weight = tl.load(own + of_head)
    forgotten = tl.load(gone + of_head)
    if CODED:
        digit = tl.load(
            asked_digits + (own_row * 4 + r % 4)[:, None] * D_STATE + n[None, :], mask=in_n[None, :], other=0
        )
        worth = tl.load(asked_sizes + own_row) * tl.exp2(-6.0 - 7.0 * (r % 4).to(tl.float32))
    else:
        question = tl.load(asked + (row * GROUPS + group) * D_STATE + n, mask=in_n, other=0.0)
    if INTERVAL > 0:
        token_digit = tl.load(
            token_digits + (of_head * 4 + r)[:, None] * TOKENS + i[None, :], mask=(r < 3)[:, None], other=0
        )
        token_worth = tl.load(token_sizes + of_head) * tl.exp2(-6.0 - 7.0 * r.to(tl.float32))
        within = tl.dot(old_x, tl.trans(token_digit)).to(tl.float32) * token_worth[None, :]
        if CODED:
            parts = tl.dot(before, tl.trans(digit)).to(tl.float32) * (worth * forgotten)[None, :]
            parts = tl.where((r // 4)[None, :] == choice[:, None], parts, 0.0)
            result = tl.sum(parts + within * x_factor[:, None], 1)
        else:
            result = tl.sum(before.to(tl.float32) * question[None, :], 1) * forgotten
            result += tl.sum(within, 1) * x_factor
        result += new_x * own_weight
    else:
        direction = tl.load(given + (row * GROUPS + group) * D_STATE + n, mask=in_n, other=0.0)
        h = before * forgotten + (new_x * own_weight)[:, None] * direction[None, :]
        tl.store(home, h, mask=tile)
        result = tl.sum(h * question[None, :], 1)
    tl.store(y + row * INNER + c, result + skip * new_x, mask=in_p)


@triton.jit
def _round_states(
    slots, x_scale, B_scale, A, state_scale, state_row, state, waiting_x, waiting_B, waiting_dt,
    all_slots, scale_rows,
    HEADS: tl.constexpr, HEADDIM: tl.constexpr, GROUPS: tl.constexpr, D_STATE: tl.constexpr, INTERVAL: tl.constexpr,
    CODED: tl.constexpr, P_TILE: tl.constexpr, N_TILE: tl.constexpr, TOKENS: tl.constexpr, BLOCK: tl.constexpr,
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
    block = slot * ((INTERVAL + BLOCK - 1) // BLOCK) + i // BLOCK
    x = tl.load(
        waiting_x + (block[:, None] * INNER + c[None, :]) * BLOCK + i[:, None] % BLOCK,
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
    asked_digits = new(rows, s.ngroups, own_rows, 4, s.d_state, dtype=torch.int8)
    asked_sizes = new(rows, s.ngroups, own_rows)
    token_digits = new(rows, s.nheads, 4, tokens, dtype=torch.int8)
    token_sizes, own, gone = new(rows, s.nheads), new(rows, s.nheads), new(rows, s.nheads)
    between = (asked, given, asked_digits, asked_sizes, token_digits, token_sizes, own, gone)
    options = launch_options(projected)
    of_mixer = (s.nheads, s.headdim, s.ngroups, s.d_state)
    of_state = (s.interval, coded, len(c.state_scale), own_rows)
    heads = (
        4 if rows <= 4 else 8
    )  # whose weights one program computes: with more, fewer programs read B again
    parts = triton.cdiv(s.nheads // s.ngroups, heads) + (triton.cdiv(own_rows, 4) if coded else 0)
    _prepare[s.ngroups * parts + triton.cdiv(s.d_inner, _CHANNELS), rows](
        projected, slots, positions, c.conv_weight, c.conv_scale, c.conv_bias, c.conv_inverse, c.B_scale, c.C_scale,
        c.dt_scale, c.dt_bias, c.A, c.state_scale, m.ring, m.x, m.B, m.dt, convolved, *between, *dt_limit,
        projected.stride(0), *of_mixer, s.d_conv, *of_state, n_tile, tokens, BLOCK, heads, _CHANNELS,
        num_warps=4, **options,
    )  # fmt: skip
    _step[s.nheads, rows](
        slots, positions, convolved, c.x_scale, c.D, c.state_rows, c.state_choice, m.state, m.x, *between, y,
        *of_mixer, *of_state, p_tile, n_tile, tokens, BLOCK,
        # Never four where codes are multiplied: Triton 3.6 then takes wgmma and points it outside of shared memory.
        num_warps=2 if s.interval else 4, **options,
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
        p_tile, n_tile, tokens, BLOCK, num_warps=4, enable_fp_fusion=False,
    )  # fmt: skip
