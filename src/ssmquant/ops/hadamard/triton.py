"""The Hadamard transform on GPUs, with the output stages of the mixers around it: gate, norm, transform, codes at once.

``H_n = H_outer kron H_inner``: the outer factor is a power of two, the inner one holds the dense base matrix. A row is
the tile ``X [outer, inner]``, and its transform ``H_outer X H_inner^T`` two products on tensor cores. Their entries are
+1 and -1; X goes in as two float16 terms (22 bits, after scaling by a power of two), so the result is float32's.

Few rows are spread over many programs, each of which computes a block of the outer rows; more get a program each, which
applies the outer factor as two factors of 16 and more; with many, a program goes from row to row, and the factors are
chosen so that little is padded.
"""

from __future__ import annotations

from functools import cache
from math import ceil

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.hadamard import hadamard
from ssmquant.ops.hadamard.matrix import base_order, matrix
from ssmquant.ops.registry import Kernel
from ssmquant.ops.triton_numerics import (
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    rsqrt,
    wait_for_previous,
)

__all__ = ["emit", "fast_silu", "power_of_two_above", "split", "unsupported_rows", "unsupported_size"]

_ASSEMBLY = tl.constexpr(not triton.knobs.runtime.interpret)
_LARGEST_ROW = 16384  # channels that one program holds in registers
_LARGEST_BASE = 128
_LARGEST_INNER = 96  # of many rows; sums of so many elements below 2**9 are float16's
_SPREAD_ROWS = 8  # up to so many rows, a row is computed by several programs
_MANY_ROWS = 512  # from so many on, programs go from row to row and keep the matrices
_MANY = (4, 528)  # warps and programs then
# Where the inner factor is cut into two tiles. With four warps, Triton 3.6 takes Hopper's warp-group product, which
# came out wrong for tiles of 16 and 32 columns whose left factor is in registers; with two it takes the other one.
_MANY_IN_PARTS = (2, 528)


@triton.jit
def split(v):
    """Return float32 values of magnitude below 2**16 as the sum of two float16 terms, exact to 22 bits."""
    high = v.to(tl.float16)
    return high, (v - high.to(tl.float32)).to(tl.float16)


@triton.jit
def fast_silu(x):
    """Return ``x / (1 + exp(-x))`` by the exponential of the hardware: where that is off by |x| ulp, it is small."""
    if _ASSEMBLY:
        return tl.inline_asm_elementwise(
            """
            {
            .reg .f32 e;
            mul.ftz.f32 e, $1, 0fBFB8AA3B;
            ex2.approx.ftz.f32 e, e;
            add.ftz.f32 e, e, 0f3F800000;
            rcp.approx.ftz.f32 e, e;
            mul.ftz.f32 $0, $1, e;
            }
            """,
            "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    return x / (1.0 + tl.exp2(tl.minimum(x * -1.4426950408889634, 127.0)))


@triton.jit
def power_of_two_above(largest):
    """Return a power of two above a float32 magnitude, and its reciprocal; both are normal numbers."""
    exponent = tl.minimum((largest.to(tl.int32, bitcast=True) >> 23) + 1, 253)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(
        tl.float32, bitcast=True
    )


@triton.jit
def _left(a, v):
    """Return ``a @ v`` for a matrix ``a`` of float16 integers and float32 ``v``."""
    high, low = split(v)
    return tl.dot(a, low, tl.dot(a, high))


@triton.jit
def _right(v, a):
    """Return ``v @ a`` for float32 ``v`` and a matrix ``a`` of float16 integers."""
    high, low = split(v)
    return tl.dot(low, a, tl.dot(high, a))


@triton.jit
def _store(out, y, channel, valid, scale_out, CODED: tl.constexpr, SCALE_OUT_STRIDE: tl.constexpr, unit=1.0):
    """Store ``y * unit``, or its codes; ``unit`` is a power of two, so the reciprocal of their scale may take it."""
    if CODED:
        if SCALE_OUT_STRIDE == 0:
            inverse = reciprocal(tl.full((1, 1), 0.0, tl.float32) + tl.load(scale_out))
        else:
            inverse = reciprocal(tl.load(scale_out + channel, mask=valid, other=1.0))
        tl.store(out + channel, quantize(y, inverse * unit), mask=valid)
    else:
        tl.store(out + channel, y * unit, mask=valid)


@triton.jit
def _gate_factor(z_scale, channel, valid, Z_CODED: tl.constexpr, Z_SCALE_STRIDE: tl.constexpr):
    """Return what codes of z are multiplied by, for a tile of a row."""
    factor = 1.0
    if Z_CODED:
        if Z_SCALE_STRIDE == 0:  # noqa: SIM108  (only one of the branches can be compiled)
            factor = tl.load(z_scale)
        else:
            factor = tl.load(z_scale + channel, mask=valid, other=0.0)
    return factor


@triton.jit
def _gated(y, z, factor, channel, valid, rows, GATED: tl.constexpr, Z_CODED: tl.constexpr):
    """Return a tile of a row as float32, gated; ``y`` and ``z`` point to the row, factor is `_gate_factor`'s."""
    v = tl.load(y + channel, mask=valid, other=0.0).to(tl.float32)
    if GATED:
        # Triton 3.6 lays out a product whose factor comes from bytes as a product of bytes, which takes a sixth more
        # instructions. It does not look into the branch, which is always taken.
        gate = tl.zeros(channel.shape, z.dtype.element_ty)
        if rows > 0:
            gate = tl.load(z + channel, mask=valid, other=0)
        if Z_CODED:
            # In the mantissa of 1.5 * 2**23, since the conversion instruction is slow.
            gate = (gate.to(tl.int32) + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0
            gate = gate * factor
        v = v * fast_silu(gate.to(tl.float32))
    return v


@triton.jit
def _narrow(matrix, row, column, ROW: tl.constexpr):
    """Return elements of a float16 matrix, read four at a time: wider accesses would widen those of the floats too."""
    return tl.load(matrix + tl.max_contiguous(row * ROW + column, (1, 4)))


@triton.jit
def _emit_many(
    y, z, z_scale, weight, out, scale_out, outer_matrix, inner_matrix, eps, before, after,
    rows, y_stride, z_stride,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr,
    OUTER: tl.constexpr, OUTER_TILE: tl.constexpr, INNER: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr,
    GATED: tl.constexpr, Z_CODED: tl.constexpr, Z_SCALE_STRIDE: tl.constexpr,
    NORMED: tl.constexpr, CODED: tl.constexpr, SCALE_OUT_STRIDE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    # The inner factor is cut into columns that are powers of two, so that nothing is padded but small sizes.
    SIZE: tl.constexpr = FIRST + SECOND
    GROUPS: tl.constexpr = CHANNELS // GROUP
    i = tl.arange(0, OUTER_TILE)[:, None]
    j = tl.arange(0, FIRST)
    # Floats set how wide a thread's accesses are: codes, read as widely, would tear a warp's floats apart.
    channel = tl.max_contiguous(i * INNER + j[None, :], (1, 4))
    valid = (i < OUTER) & (j < INNER)[None, :]
    block = _narrow(outer_matrix, i, tl.arange(0, OUTER_TILE)[None, :], OUTER_TILE)
    inner = _narrow(inner_matrix, j[:, None], j[None, :], SIZE)
    if SECOND > 0:
        k = FIRST + tl.arange(0, SECOND)
        channel_2 = tl.max_contiguous(i * INNER + k[None, :], (1, 4))
        valid_2 = (i < OUTER) & (k < INNER)[None, :]
        inner_12 = _narrow(inner_matrix, j[:, None], k[None, :], SIZE)
        inner_21 = _narrow(inner_matrix, k[:, None], j[None, :], SIZE)
        inner_22 = _narrow(inner_matrix, k[:, None], k[None, :], SIZE)
    if NORMED:
        # No element of a normed row is above this: it goes into the products below 2**9, sums below 2**16.
        largest = tl.max(tl.abs(tl.load(weight + channel, mask=valid, other=0.0)))
        if SECOND > 0:
            gain_2 = tl.load(weight + channel_2, mask=valid_2, other=0.0)
            largest = tl.maximum(largest, tl.max(tl.abs(gain_2)))
        size, inverse_size = power_of_two_above(largest * GROUP**0.5)
        inverse_size = inverse_size * before
    wait_for_previous(PDL)
    let_next_start(PDL)
    y += tl.program_id(0).to(tl.int64) * y_stride
    z += tl.program_id(0).to(tl.int64) * z_stride
    out += tl.program_id(0).to(tl.int64) * CHANNELS
    for _ in tl.range(tl.program_id(0), rows, tl.num_programs(0), num_stages=1):
        factor = _gate_factor(z_scale, channel, valid, Z_CODED, Z_SCALE_STRIDE)
        v = _gated(y, z, factor, channel, valid, rows, GATED, Z_CODED)
        if SECOND > 0:
            factor = _gate_factor(z_scale, channel_2, valid_2, Z_CODED, Z_SCALE_STRIDE)
            v_2 = _gated(y, z, factor, channel_2, valid_2, rows, GATED, Z_CODED)
        if NORMED:
            if GROUP == CHANNELS:
                total = tl.sum(v * v)
                if SECOND > 0:
                    total += tl.sum(v_2 * v_2)
                factor = rsqrt(tl.full((1, 1), 0.0, tl.float32) + total / GROUP + eps)
                factor_2 = factor
            elif GROUP % INNER == 0 and OUTER == OUTER_TILE and GROUPS & (GROUPS - 1) == 0:
                # A group is a block of outer rows.
                squares = tl.sum(v * v, 1)
                if SECOND > 0:
                    squares += tl.sum(v_2 * v_2, 1)
                means = tl.sum(tl.reshape(squares, (GROUPS, OUTER // GROUPS)), 1) / GROUP
                factor = tl.broadcast_to(rsqrt(means + eps)[:, None], (GROUPS, OUTER // GROUPS))
                factor = tl.reshape(factor, (OUTER, 1))
                factor_2 = factor
            else:
                factor = tl.zeros_like(v)
                if SECOND > 0:
                    factor_2 = tl.zeros_like(v_2)
                for group in tl.static_range(GROUPS):
                    inside = channel // GROUP == group
                    total = tl.sum(tl.where(inside, v * v, 0.0))
                    if SECOND > 0:
                        inside_2 = channel_2 // GROUP == group
                        total += tl.sum(tl.where(inside_2, v_2 * v_2, 0.0))
                    of_group = rsqrt(tl.full((1, 1), 0.0, tl.float32) + total / GROUP + eps)
                    factor = tl.where(inside, of_group, factor)
                    if SECOND > 0:
                        factor_2 = tl.where(inside_2, of_group, factor_2)
            v = v * (factor * inverse_size) * tl.load(weight + channel, mask=valid, other=0.0)
            if SECOND > 0:
                v_2 = v_2 * (factor_2 * inverse_size) * tl.load(weight + channel_2, mask=valid_2, other=0.0)
        else:
            largest = tl.max(tl.abs(v))
            if SECOND > 0:
                largest = tl.maximum(largest, tl.max(tl.abs(v_2)))
            size, inverse_size = power_of_two_above(largest)
            v = v * (inverse_size * before)
            if SECOND > 0:
                v_2 = v_2 * (inverse_size * before)
        high, low = split(v)
        u = tl.dot(low, inner, tl.dot(high, inner))
        if SECOND > 0:
            high_2, low_2 = split(v_2)
            u = tl.dot(low_2, inner_21, tl.dot(high_2, inner_21, u))
            u_2 = tl.dot(low, inner_12, tl.dot(high, inner_12))
            u_2 = tl.dot(low_2, inner_22, tl.dot(high_2, inner_22, u_2))
        back = size * after
        _store(out, _left(block, u), channel, valid, scale_out, CODED, SCALE_OUT_STRIDE, back)
        if SECOND > 0:
            _store(out, _left(block, u_2), channel_2, valid_2, scale_out, CODED, SCALE_OUT_STRIDE, back)
        y += tl.num_programs(0).to(tl.int64) * y_stride
        z += tl.num_programs(0).to(tl.int64) * z_stride
        out += tl.num_programs(0).to(tl.int64) * CHANNELS


@triton.jit
def _emit(
    y, z, z_scale, weight, out, scale_out, outer_matrix, inner_matrix, eps, root,
    y_stride, z_stride,
    CHANNELS: tl.constexpr, GROUP: tl.constexpr,
    OUTER: tl.constexpr, OUTER_TILE: tl.constexpr, INNER: tl.constexpr, INNER_TILE: tl.constexpr,
    SPREAD: tl.constexpr, GATED: tl.constexpr, Z_CODED: tl.constexpr, Z_SCALE_STRIDE: tl.constexpr,
    NORMED: tl.constexpr, TRANSFORM: tl.constexpr, CODED: tl.constexpr, SCALE_OUT_STRIDE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """One row; where it is SPREAD over several programs, sixteen outer rows of its transform."""
    GROUPS: tl.constexpr = CHANNELS // GROUP
    PARTS: tl.constexpr = OUTER_TILE // 16 if SPREAD else 1
    if SPREAD:
        let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, OUTER_TILE)[:, None]
    j = tl.arange(0, INNER_TILE)[None, :]
    # Floats set how wide a thread's accesses are: codes, read as widely, would tear a warp's floats apart.
    channel = tl.max_contiguous(i * INNER + j, (1, 4))
    valid = (i < OUTER) & (j < INNER)
    # Constants come from memory, and would be waited for there: they are read while the launch ahead still runs.
    factor = _gate_factor(z_scale, channel, valid, Z_CODED, Z_SCALE_STRIDE)
    if NORMED:
        gain = tl.load(weight + channel, mask=valid, other=0.0)
    if TRANSFORM:
        k = tl.arange(0, INNER_TILE)
        inner = tl.load(inner_matrix + k[:, None] * INNER_TILE + k[None, :])
        if NORMED:
            # The length of a normed row is at most this: it goes into the products below 2**8, sums below 2**16.
            size, inverse_size = power_of_two_above(tl.max(tl.abs(gain)) * CHANNELS**0.5)
            size, inverse_size = size * 0.00390625, inverse_size * 256.0
    wait_for_previous(PDL)
    v = _gated(y + row * y_stride, z + row * z_stride, factor, channel, valid, 1, GATED, Z_CODED)
    if not SPREAD:
        let_next_start(PDL)
    common = tl.full((1, 1), 1.0, tl.float32)  # what all elements of the transform are multiplied by
    if NORMED:
        squares = v * v
        if GROUP == CHANNELS:
            common = rsqrt(tl.full((1, 1), 0.0, tl.float32) + tl.sum(squares) / GROUP + eps)
        elif (
            OUTER == OUTER_TILE
            and GROUP % INNER == 0
            and OUTER * INNER == CHANNELS
            and GROUPS & (GROUPS - 1) == 0
        ):
            # A group is a block of outer rows.
            by_group = tl.reshape(tl.sum(squares, 1), (GROUPS, OUTER_TILE // GROUPS))
            of_group = rsqrt(tl.sum(by_group, 1) / GROUP + eps)
            of_row = tl.broadcast_to(of_group[:, None], (GROUPS, OUTER_TILE // GROUPS))
            v *= tl.reshape(of_row, (OUTER_TILE, 1))
        else:
            of_channel = tl.zeros_like(v)
            for group in tl.static_range(GROUPS):
                inside = channel // GROUP == group
                mean = tl.sum(tl.where(inside, squares, 0.0)) / GROUP
                of_channel = tl.where(
                    inside, rsqrt(tl.full((1, 1), 0.0, tl.float32) + mean + eps), of_channel
                )
            v *= of_channel
        if TRANSFORM:
            v *= gain
        else:
            v = v * common * gain
    if not TRANSFORM:
        _store(out + row * CHANNELS, v, channel, valid, scale_out, CODED, SCALE_OUT_STRIDE)
    else:
        if not NORMED:
            size, inverse_size = power_of_two_above(tl.max(tl.abs(v)))
        if SPREAD:
            # H_outer = H_parts kron H_16: the sums over the parts, of which a program needs one, need no product.
            first = tl.program_id(1) * 16
            if PARTS > 1:
                part = tl.arange(0, PARTS)
                sign = tl.load(outer_matrix + first * OUTER_TILE + part * 16).to(tl.float32)
                v = tl.sum(tl.reshape(v, (PARTS, 16, INNER_TILE)) * sign[:, None, None], 0)
            a = tl.arange(0, 16)
            block = tl.load(outer_matrix + a[:, None] * OUTER_TILE + a[None, :])
            u = _left(block, _right(v * (common * inverse_size), inner))
            channel = (first + a)[:, None] * INNER + j
            valid = ((first + a)[:, None] < OUTER) & (j < INNER)
        elif OUTER_TILE < 256:
            block = tl.load(outer_matrix + i * OUTER_TILE + tl.arange(0, OUTER_TILE)[None, :])
            u = _left(block, _right(v * (common * inverse_size), inner))
        else:
            # The corner of Sylvester's matrix is the smaller one; H_outer = H_16 kron H_rest.
            REST: tl.constexpr = OUTER_TILE // 16
            a = tl.arange(0, 16)
            b = tl.arange(0, REST)
            h_16 = tl.load(outer_matrix + a[:, None] * OUTER_TILE + a[None, :])
            h_rest = tl.load(outer_matrix + b[:, None] * OUTER_TILE + b[None, :])
            u = _right(v * (common * inverse_size), inner)
            u = _left(h_16, tl.reshape(u, (16, REST * INNER_TILE)))
            u = tl.permute(tl.reshape(u, (16, REST, INNER_TILE)), (1, 0, 2))
            u = _left(h_rest, tl.reshape(u, (REST, 16 * INNER_TILE)))
            place = tl.arange(0, 16 * INNER_TILE)[None, :]
            channel = (place // INNER_TILE * REST + b[:, None]) * INNER + place % INNER_TILE
            valid = (place % INNER_TILE < INNER) & (b[:, None] < REST)
        _store(out + row * CHANNELS, u * (size * root), channel, valid, scale_out, CODED, SCALE_OUT_STRIDE)


def _inner_size(n: int, largest: int) -> int:
    """Return an inner factor of size n: the base matrix, doubled up to ``largest`` where it can be."""
    inner = base_order(n) or 1
    while inner * 2 <= largest and n % (inner * 2) == 0:
        inner *= 2
    return inner


def _sylvester(n: int) -> Tensor:
    """Return Sylvester's matrix ``[n, n]``, float64; n is a power of two."""
    index = torch.arange(n)
    signs = torch.ones(n, n, dtype=torch.float64)
    for bit in range(n.bit_length()):
        signs *= 1 - 2 * ((index[:, None] & index[None, :]) >> bit & 1)
    return signs


@cache
def _matrices(n: int, inner: int, inner_tile: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the outer factor and the inner one transposed, float16, padded with zeros to tiles."""
    base = base_order(n) or 1
    tiles = []
    for part, size in (
        (_sylvester(n // inner), _tile(n // inner)),
        (torch.kron(_sylvester(inner // base), matrix(base)).T, inner_tile),
    ):
        padded = torch.zeros(size, size, dtype=torch.float16)
        padded[: len(part), : len(part)] = part.half()
        tiles.append(padded.to(device))
    return tiles[0], tiles[1]


def _tile(size: int) -> int:
    return max(16, int(triton.next_power_of_2(size)))


def _parts(inner: int) -> tuple[int, int]:
    """Return the columns of the two tiles that hold an inner factor; 0 for no second one."""
    first = max(16, triton.next_power_of_2(inner + 1) // 2)
    return first, 0 if inner <= first else _tile(inner - first)


def unsupported_rows(channels: int) -> str | None:
    """Return why rows of so many channels cannot be run, or None."""
    if channels > _LARGEST_ROW:
        return f"rows of {channels} channels do not fit a program; at most {_LARGEST_ROW}"
    return None


def unsupported_size(channels: int) -> str | None:
    """Return why there is no transform of rows of so many channels, or None."""
    if (base_order(channels) or 1) > _LARGEST_BASE:
        return f"the dense factor of {channels} is {base_order(channels)}; at most {_LARGEST_BASE}"
    return unsupported_rows(channels)


def emit(
    y: Tensor,
    z: Tensor | None,
    z_scale: Tensor | None,
    weight: Tensor | None,
    eps: float,
    group_size: int,
    transform: bool,
    scale_out: Tensor | None,
    out: Tensor | None = None,
) -> Tensor:
    """Return rows gated, normed, transformed and quantised, each as far as it is asked for.

    Args:
        y: float ``[..., C]``.
        z: int8 or float, as y; None for no gate.
        z_scale: float32 ``[1]`` or ``[C]`` for an int8 z.
        weight: gain ``[C]`` of the norm; None for no norm.
        eps: of the norm.
        group_size: of the norm.
        transform: whether to apply the Hadamard transform.
        scale_out: float32 ``[1]`` or ``[C]``; None for float32 results.
        out: where to put them, contiguous; None to allocate.

    Returns:
        float32 or int8 ``[..., C]``.
    """
    channels = y.shape[-1]
    shape = y.shape
    rows = _rows(y)
    gate = rows if z is None else _rows(z)
    if out is None:
        out = torch.empty(shape, dtype=torch.float32 if scale_out is None else torch.int8, device=y.device)
    if not len(rows):
        return out
    step, step_out = _step(z_scale), _step(scale_out)
    if transform and len(rows) > _MANY_ROWS:
        inner = _inner_size(channels, _LARGEST_INNER)
        parts = _parts(inner)
        outer_matrix, inner_matrix = _matrices(channels, inner, sum(parts), y.device)
        # Rows go in 256 / sqrt(C) times a power of two, and come out divided by 256 times that one, which is exact.
        grown = 256.0 * 2.0 ** (channels.bit_length() // 2)
        warps, programs = _MANY_IN_PARTS if parts[1] else _MANY
        _emit_many[(min(len(rows), programs),)](
            rows, gate, z_scale, weight, out, scale_out, outer_matrix, inner_matrix, eps,
            grown * channels**-0.5, 1.0 / grown, len(rows), rows.stride(0), gate.stride(0), channels, group_size,
            channels // inner, len(outer_matrix), inner, *parts, z is not None, z_scale is not None, step,
            weight is not None, scale_out is not None, step_out, num_warps=warps, **launch_options(y),
        )  # fmt: skip
        return out
    if transform:
        inner = _inner_size(channels, 32)
        outer_matrix, inner_matrix = _matrices(channels, inner, _tile(inner), y.device)
        outer, outer_tile, inner_tile = channels // inner, len(outer_matrix), len(inner_matrix)
    else:
        outer_matrix = inner_matrix = rows
        inner, outer, outer_tile, inner_tile = channels, 1, 1, triton.next_power_of_2(channels)
    spread = transform and len(rows) <= _SPREAD_ROWS
    _emit[len(rows), ceil(outer / 16) if spread else 1](
        rows, gate, z_scale, weight, out, scale_out, outer_matrix, inner_matrix, eps, float(channels**-0.5),
        rows.stride(0), gate.stride(0), channels, group_size, outer, outer_tile, inner, inner_tile, spread,
        z is not None, z_scale is not None, step, weight is not None, transform, scale_out is not None, step_out,
        num_warps=_warps(channels, len(rows)), **launch_options(y),
    )  # fmt: skip
    return out


def _warps(channels: int, rows: int) -> int:
    """Return the warps of a program: more where a row's latency counts, fewer where throughput does."""
    return 4 if channels <= 2048 or rows > 512 else 8 if rows <= _SPREAD_ROWS else 16


def _rows(x: Tensor) -> Tensor:
    """Return ``[..., C]`` as rows of neighbouring channels; the rows of a matrix may lie apart."""
    if x.dim() == 2 and x.stride(1) == 1:
        return x
    return x.reshape(-1, x.shape[-1]).contiguous()


def _step(scale: Tensor | None) -> int:
    """Return how far the scale of the next channel is: 0 for one scale."""
    return int(scale is not None and scale.numel() > 1)


def _run(x: Tensor) -> Tensor:
    return emit(x, None, None, None, 0.0, x.shape[-1], True, None)


def _supports(x: Tensor) -> str | None:
    if x.dtype != torch.float32:
        return f"transforms float32, not {x.dtype}"
    return unsupported_size(x.shape[-1])


hadamard.register(Kernel("triton", "cuda", _run, _supports))
