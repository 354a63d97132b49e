# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call, assignment, var-annotated"
# ruff: noqa: RUF005, SIM108  (Triton compiles neither unpacking into a tuple nor every conditional expression)
"""`int8_linear` on NVIDIA GPUs: exact int32 sums, the reference's epilogue, bit for bit.

Two kernels. `_rows` is for few tokens: a program keeps some rows of the weight in registers, all of K at once,
and multiplies them with each token (dp4a); every load is in flight before the first is used, and with
programmatic dependent launch before the launch ahead has finished. It can begin with the RMS norm of its
tokens. `_tiles` is for the rest: tiles on tensor cores, fed by the tensor memory accelerator where there is
one; few tiles are shared by several programs along K, the last of which adds their integer sums.

`linear_int8` and `norm_linear_int8` write into given outputs, and neither allocate nor synchronise.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ssmquant.errors import InputError
from ssmquant.ops.int8_linear import int8_linear
from ssmquant.ops.registry import Kernel
from ssmquant.ops.triton_numerics import (
    dot4,
    interpreted,
    launch_options,
    let_next_start,
    quantize,
    reciprocal,
    rsqrt,
    wait_for_previous,
)
from ssmquant.ops.tuning import Tile, find

__all__ = [
    "CODES",
    "FEW_TOKENS",
    "MAX_NORM_TOKENS",
    "RowFormat",
    "contiguous",
    "expect_few_tokens",
    "expect_one_target",
    "finish",
    "has_descriptors",
    "launch_rows",
    "linear_int8",
    "norm_linear_int8",
    "normed_words",
    "place_of_tile",
    "processors",
    "splits",
    "store_tile",
    "sum_of_splits",
    "tile_of",
    "workspace",
]

FEW_TOKENS = 1
"""Most tokens that go to the kernel for few of them: it repeats its work for each, tiles do sixteen at once."""

MAX_NORM_TOKENS = 4
"""Most tokens of `norm_linear_int8`: every program repeats their norm, so for more a launch of its own is faster."""

_MAX_ROWS_K = 16384  # all of K of some rows fits into registers up to here
_WORKSPACE = 1 << 22  # int32 sums that split tiles may leave for the last program
_COUNTERS = 1 << 12  # tiles that may be split
_WORDS_AHEAD = 80  # of weights that a thread of the kernel for few tokens has in flight


@triton.jit
def _operands(bias, scale_out, residual, rows, columns, inside, N, OUT_CHANNELS: tl.constexpr):
    """Load what `_write` adds to results and divides them by: bias, scale of the codes, residual."""
    added, scale, before = 0.0, 1.0, 0.0
    if bias is not None:
        added = tl.load(bias + columns, mask=columns < N, other=0.0)
    if residual is not None:
        at = rows.to(tl.int64) * N + columns
        before = tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    elif scale_out is not None:
        if OUT_CHANNELS:
            scale = tl.load(scale_out + columns, mask=columns < N, other=1.0)
        else:
            scale = tl.load(scale_out)
    return added, scale, before


@triton.jit
def _write(y, operands, bias, scale_out, out, residual, rows, columns, inside, N):
    """Store float32 results as `finish` does, given its `_operands`."""
    if bias is not None:
        y = y + operands[0]
    at = rows.to(tl.int64) * N + columns
    if residual is not None:
        y = y + operands[2]
        tl.store(residual + at, y.to(residual.dtype.element_ty), mask=inside)
    elif scale_out is not None:
        tl.store(out + at, quantize(y, reciprocal(operands[1])), mask=inside)
    else:
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def finish(y, bias, scale_out, out, residual, rows, columns, inside, N, OUT_CHANNELS: tl.constexpr):
    """Add the bias and store float32 results at ``[rows, columns]``: as codes, as floats, or added to the residual.

    ``rows``, ``columns`` and ``inside`` broadcast to y's shape; the residual is read and written in its own dtype.
    """
    operands = _operands(bias, scale_out, residual, rows, columns, inside, N, OUT_CHANNELS)
    _write(y, operands, bias, scale_out, out, residual, rows, columns, inside, N)


@triton.jit
def normed_words(hidden, gain, eps, inverse_scale, columns, inside, K):
    """Return the codes of one token's RMS norm, four to an int32.

    Args:
        hidden: float row ``[K]``.
        gain: float32 ``[4 * words, …]`` at ``columns``.
        eps: added to the mean square.
        inverse_scale: reciprocal of the codes' scale.
        columns: ``[words, 4]``, the places in the row.
        inside: which of them are there.
        K: size of the row.
    """
    x = tl.load(hidden + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.div_rn(tl.sum(tl.sum(x * x, axis=1), axis=0), K.to(tl.float32))
    y = x * rsqrt(mean + eps) * gain
    byte = quantize(y, inverse_scale).to(tl.int32) & 0xFF
    return tl.sum(byte << (8 * tl.arange(0, 4))[None, :], axis=1)


@triton.jit
def _load_codes(weight, grid, rows, N, words, chunk, CHUNK: tl.constexpr, GRANULE: tl.constexpr):
    """Load a chunk of rows of a weight of int8 codes, as int32 words of four."""
    word = chunk * CHUNK + tl.arange(0, CHUNK)
    at = weight + (rows.to(tl.int64) * words)[:, None] + word[None, :]
    inside = (rows < N)[:, None] & (word < words)[None, :]
    return (tl.load(at, mask=inside, other=0, eviction_policy="evict_first"),)


@triton.jit
def _hold_codes(parts, CHUNK: tl.constexpr, GRANULE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Return what `_add_codes` takes of a chunk of a token, words as `_rows` has them."""
    return parts


@triton.jit
def _add_codes(total, loaded, token, CHUNK: tl.constexpr, GRANULE: tl.constexpr, ASSEMBLY: tl.constexpr):
    """Add the products of a chunk of rows with a token's."""
    return dot4(loaded[0], token[0], total, ASSEMBLY)


@triton.jit
def _place(chunk, part, CHUNK: tl.constexpr, GRANULE: tl.constexpr, PARTS: tl.constexpr):
    """Return which words of a token meet a chunk's words, ``[CHUNK]``; of those with two parts, which meet a part."""
    word = chunk * CHUNK + tl.arange(0, CHUNK)
    if PARTS > 1:
        word = word // GRANULE * (PARTS * GRANULE) + part * GRANULE + word % GRANULE
    return word


@triton.jit
def _rows(
    x, gain, eps, x_scale, weight, grid, weight_scale, bias, scale_out, out, residual, N, words,
    LOAD: tl.constexpr, HOLD: tl.constexpr, ADD: tl.constexpr, PARTS: tl.constexpr, WIDTH: tl.constexpr,
    GRANULE: tl.constexpr, M: tl.constexpr, X_TOKENS: tl.constexpr, W_CHANNELS: tl.constexpr,
    OUT_CHANNELS: tl.constexpr, BLOCK_N: tl.constexpr, STEPS: tl.constexpr, AHEAD: tl.constexpr,
    CHUNK: tl.constexpr, CHUNKS: tl.constexpr, TOKEN_ROWS: tl.constexpr, ASSEMBLY: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """M tokens times STEPS blocks of BLOCK_N rows of the weight, one block after the other, AHEAD of them in flight.

    A row is CHUNKS times CHUNK int32 ``words``, as the format stores them; see `RowFormat`. x is int32
    ``[M, PARTS * words]``; with a gain it is the float hidden ``[M, 4 * PARTS * words]`` whose norm is quantised first.
    """
    let_next_start(PDL)
    rows = tl.program_id(0) * (STEPS * BLOCK_N) + tl.arange(0, BLOCK_N)
    byte = tl.arange(0, 4)[None, :]
    loaded = ()
    w_scales = ()
    for step in tl.static_range(STEPS):
        here = rows + step * BLOCK_N
        if step < AHEAD:
            for chunk in tl.static_range(CHUNKS):
                loaded = loaded + (LOAD(weight, grid, here, N, words, chunk, CHUNK, GRANULE),)
        if W_CHANNELS:
            w_scales = w_scales + (tl.load(weight_scale + here, mask=here < N, other=0.0),)
        else:
            w_scales = w_scales + (tl.load(weight_scale),)
    gains = ()
    if gain is not None:
        for chunk in tl.static_range(CHUNKS):
            for part in tl.static_range(PARTS):
                columns = _place(chunk, part, CHUNK, GRANULE, PARTS)[:, None] * 4 + byte
                gains = gains + (tl.load(gain + columns, mask=columns < 4 * PARTS * words, other=0.0),)
        inverse = reciprocal(tl.load(x_scale))
    wait_for_previous(PDL)
    tokens = ()
    for m in tl.static_range(M):
        row = x + m * (4 * PARTS * words if gain is not None else PARTS * words)
        found = ()
        squares = tl.zeros((CHUNK, 4), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            for part in tl.static_range(PARTS):
                place = _place(chunk, part, CHUNK, GRANULE, PARTS)
                if gain is None:
                    # A matrix like the weight's words, so that each thread loads those that it needs.
                    at = row + (place[None, :] + tl.arange(0, TOKEN_ROWS)[:, None] * 0)
                    found = found + (tl.load(at, mask=(place < PARTS * words)[None, :], other=0),)
                else:
                    columns = place[:, None] * 4 + byte
                    v = tl.load(row + columns, mask=columns < 4 * PARTS * words, other=0.0).to(tl.float32)
                    squares += v * v
                    found = found + (v,)
        if gain is not None:
            mean = tl.div_rn(tl.sum(tl.sum(squares, 1), 0), (4 * PARTS * words).to(tl.float32))
            factor = rsqrt(mean + eps)
        for chunk in tl.static_range(CHUNKS):
            held = ()
            for part in tl.static_range(PARTS):
                token = found[chunk * PARTS + part]
                if gain is not None:
                    code = quantize(token * factor * gains[chunk * PARTS + part], inverse).to(tl.int32)
                    word = tl.sum((code & 0xFF) << (8 * byte), 1)[None, :]
                    token = tl.broadcast_to(word, (TOKEN_ROWS, CHUNK))
                held = held + (token,)
            tokens = tokens + (HOLD(held, CHUNK, GRANULE, ASSEMBLY),)
    operands = ()
    for step in tl.static_range(STEPS):
        here = rows + step * BLOCK_N
        for m in tl.static_range(M):
            operands = operands + (
                _operands(bias, scale_out, residual, here * 0 + m, here, here < N, N, OUT_CHANNELS),
            )
    for step in tl.static_range(STEPS):
        here = rows + step * BLOCK_N
        for m in tl.static_range(M):
            total = tl.zeros((BLOCK_N, CHUNK // WIDTH), tl.int32)
            for chunk in tl.static_range(CHUNKS):
                total = ADD(
                    total, loaded[step * CHUNKS + chunk], tokens[m * CHUNKS + chunk], CHUNK, GRANULE, ASSEMBLY
                )
            scale = tl.load(x_scale + (m if X_TOKENS else 0)) * w_scales[step]
            y = tl.sum(total, 1).to(tl.float32) * scale
            _write(y, operands[step * M + m], bias, scale_out, out, residual, here * 0 + m, here, here < N, N)
        if step + AHEAD < STEPS:
            for chunk in tl.static_range(CHUNKS):
                loaded = loaded + (
                    LOAD(weight, grid, here + AHEAD * BLOCK_N, N, words, chunk, CHUNK, GRANULE),
                )


@triton.jit
def place_of_tile(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return where a tile begins along M and N."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    # Eight tiles along M and then the next along N: both operands of programs that run together stay in the L2 cache.
    group = tile // (8 * tiles_n)
    group_m = min(tiles_m - group * 8, 8)
    begin_m = (group * 8 + tile % (8 * tiles_n) % group_m) * BLOCK_M
    begin_n = tile % (8 * tiles_n) // group_m * BLOCK_N
    return begin_m, begin_n


@triton.jit
def sum_of_splits(
    total, sums, arrived, tile, split, ROWS: tl.constexpr, COLUMNS: tl.constexpr, SPLIT_K: tl.constexpr
):
    """Return a tile's sum over all parts of K, and whether this program is the last of them, which alone has it.

    Args:
        total: int32 ``[ROWS, COLUMNS]``, this program's part.
        sums: see `workspace`.
        arrived: see `workspace`.
        tile: number of the tile.
        split: number of the part.
        ROWS: of the tile.
        COLUMNS: of the tile.
        SPLIT_K: number of parts.
    """
    last = True
    if SPLIT_K > 1:
        here = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        here += tile * (SPLIT_K * ROWS * COLUMNS)
        tl.store(sums + here + split * (ROWS * COLUMNS), total)
        tl.debug_barrier()  # all threads have stored before one of them says so
        last = tl.atomic_add(arrived + tile, 1, sem="acq_rel") == SPLIT_K - 1
        if last:
            tl.store(arrived + tile, 0)  # as the next launch expects it
            total = tl.zeros((ROWS, COLUMNS), tl.int32)
            for part in range(SPLIT_K):
                total += tl.load(sums + here + part * (ROWS * COLUMNS), cache_modifier=".cg")
    return total, last


@triton.jit
def _scaled(
    total, x_scale, weight_scale, rows, columns, M, N, X_TOKENS: tl.constexpr, W_CHANNELS: tl.constexpr
):
    """Return a tile's int32 sums as float32; ``rows`` and ``columns`` broadcast to the tile, in either order."""
    if W_CHANNELS:
        scales = tl.load(weight_scale + columns, mask=columns < N, other=0.0)
    else:
        scales = tl.load(weight_scale)
    if X_TOKENS:
        scales = tl.load(x_scale + rows, mask=rows < M, other=0.0) * scales
    else:
        scales = tl.load(x_scale) * scales
    return total.to(tl.float32) * scales


@triton.jit
def store_tile(
    total, x_scale, weight_scale, bias, scale_out, out, residual, rows, columns, M, N,
    X_TOKENS: tl.constexpr, W_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Scale a tile's int32 sums and `finish` them; ``rows`` and ``columns`` broadcast to the tile, in either order."""
    y = _scaled(total, x_scale, weight_scale, rows, columns, M, N, X_TOKENS, W_CHANNELS)
    inside = (rows < M) & (columns < N)
    finish(y, bias, scale_out, out, residual, rows, columns, inside, N, OUT_CHANNELS)


@triton.jit
def _add_tile(
    total, x_scale, weight_scale, bias, residual, begin_m, begin_n, rows, columns, M, N,
    X_TOKENS: tl.constexpr, W_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Add a scaled tile to a float32 residual, which is a tensor descriptor: the copy engine adds, nothing is read.

    Without the residual and addresses in registers three programs fit a multiprocessor in place of one.
    """
    y = _scaled(total, x_scale, weight_scale, rows, columns, M, N, X_TOKENS, W_CHANNELS)
    if bias is not None:
        y = y + tl.load(bias + columns, mask=columns < N, other=0.0)
    residual.atomic_add([begin_m, begin_n], y)


@triton.jit
def _tiles(
    x, x_scale, weight, weight_scale, bias, scale_out, out, residual, sums, arrived, M, N, K,
    X_TOKENS: tl.constexpr, W_CHANNELS: tl.constexpr, OUT_CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT_K: tl.constexpr,
    EVEN_K: tl.constexpr, DESCRIPTORS: tl.constexpr, ADDS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One tile ``[BLOCK_M, BLOCK_N]``, or a part of K of it; x and weight are pointers or tensor descriptors.

    So is the residual where it ADDS, see `_add_tile`.
    """
    let_next_start(PDL)
    tile = tl.program_id(0)
    split = tl.program_id(1)
    begin_m, begin_n = place_of_tile(tile, M, N, BLOCK_M, BLOCK_N)
    rows = begin_m + tl.arange(0, BLOCK_M)
    columns = begin_n + tl.arange(0, BLOCK_N)
    width = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K) * BLOCK_K
    begin_k = split * width
    end_k = min(begin_k + width, K)
    depth = tl.arange(0, BLOCK_K)
    if not DESCRIPTORS:
        # Rows beyond the end are read from the start again and never stored.
        x_at = x + (rows % M).to(tl.int64)[:, None] * K + depth[None, :]
        w_at = weight + (columns % N).to(tl.int64)[None, :] * K + depth[:, None]
    wait_for_previous(PDL)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for k in tl.range(begin_k, end_k, BLOCK_K):
        if DESCRIPTORS:
            a = x.load([begin_m, k])
            b = weight.load([begin_n, k]).T
        elif EVEN_K:
            a = tl.load(x_at + k)
            b = tl.load(w_at + k)
        else:
            a = tl.load(x_at + k, mask=(k + depth < K)[None, :], other=0)
            b = tl.load(w_at + k, mask=(k + depth < K)[:, None], other=0)
        total = tl.dot(a, b, total, out_dtype=tl.int32)
    total, last = sum_of_splits(total, sums, arrived, tile, split, BLOCK_M, BLOCK_N, SPLIT_K)
    if last:
        if ADDS:
            _add_tile(
                total, x_scale, weight_scale, bias, residual, begin_m, begin_n, rows[:, None], columns[None, :], M, N,
                X_TOKENS, W_CHANNELS,
            )  # fmt: skip
        else:
            store_tile(
                total, x_scale, weight_scale, bias, scale_out, out, residual, rows[:, None], columns[None, :], M, N,
                X_TOKENS, W_CHANNELS, OUT_CHANNELS,
            )  # fmt: skip


@cache
def _device(index: int) -> tuple[str, int, bool]:
    """Return name, number of multiprocessors and whether there is a tensor memory accelerator."""
    properties = torch.cuda.get_device_properties(index)
    return properties.name, properties.multi_processor_count, properties.major >= 9


@cache
def _workspace(device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise InputError(
            "int8_linear: a CUDA graph is being captured on a stream that has no workspace yet; "
            "run the same work once on this stream before the capture"
        )
    sums = torch.empty(_WORKSPACE, dtype=torch.int32, device=device)
    return sums, torch.zeros(_COUNTERS, dtype=torch.int32, device=device)


def workspace(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the sums and the counters (zero between launches) that launches on the current stream share.

    Graphs captured on one stream share them too: replay such graphs one after another.
    """
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _workspace(device, stream)


def processors(x: Tensor) -> int:
    """Return the number of multiprocessors that there are to keep at work."""
    return _device(x.device.index)[1] if x.is_cuda else 1


def has_descriptors(x: Tensor) -> bool:
    """Return whether tiles of x are loaded by descriptors (tensor memory accelerator, Hopper and later)."""
    return x.is_cuda and _device(x.device.index)[2]


def _reduces(residual: Tensor | None) -> bool:
    """Return whether the copy engine can add to a residual: float32 in rows of 16 bytes' multiples."""
    return (
        residual is not None
        and residual.dtype == torch.float32
        and residual.shape[1] % 4 == 0
        and residual.data_ptr() % 16 == 0
    )


def tile_of(op: str, device: torch.device, m: int, n: int, k: int, default: Tile) -> Tile:
    """Return the measured tile of a product on a device, or the default."""
    found = find(_device(device.index)[0], op, m=m, n=n, k=k) if device.type == "cuda" else None
    return found or default


def _default_tile(m: int, n: int, k: int, reads: bool, processors: int) -> Tile:
    """Return a tile for products that nobody measured; ``reads``: a residual, which takes registers."""
    if m <= FEW_TOKENS and k <= _MAX_ROWS_K:
        return Tile(0, 4, stages=2)
    if triton.cdiv(m, 128) * triton.cdiv(n, 128) >= processors:
        return Tile(128, 128, 128, warps=8 if reads else 4, stages=3)
    if m > 64:
        tile = Tile(128, 64, 128, stages=4)
    elif n >= 64 * processors:
        tile = Tile(
            64, 32, 128, stages=6
        )  # for fewer tokens too: with 16 rows programs are too small to fill the GPU
    else:
        tile = Tile(max(triton.next_power_of_2(m), 16), 32, 256, stages=4)
    tiles = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    split = 1
    while tiles * split < processors and k // (2 * split) >= 512:
        split *= 2
    return replace(tile, split_k=split)


def linear_int8(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
    *,
    out: Tensor | None = None,
    residual: Tensor | None = None,
    tile: Tile | None = None,
    chained: bool = True,
) -> None:
    """Write the linear layer of int8 operands; arguments as in the reference, x two-dimensional, all contiguous.

    Args:
        x: int8 ``[M, K]``.
        x_scale: float32 ``[1]`` or ``[M, 1]``.
        weight: int8 ``[N, K]``.
        weight_scale: float32 ``[1]`` or ``[N]``.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]`` for an int8 ``out``; None for a float one.
        out: ``[M, N]`` int8, float32, float16 or bfloat16: written.
        residual: float ``[M, N]``: the result is added to it in float32, rounded once to its dtype. Instead of ``out``.
            Tiles may take subnormal float32 numbers for zeros in that sum.
        tile: how to cut the product; the measured or the default choice if not given.
        chained: whether the launch may start, and read the weight, before the launch ahead has finished: not where that
            one writes the weight.
    """
    m, k = x.shape
    n = weight.shape[0]
    expect_one_target(out, residual, scale_out)
    if m == 0 or n == 0:
        return
    aligned = k % 16 == 0 and x.data_ptr() % 16 == 0 and weight.data_ptr() % 16 == 0
    descriptors = aligned and has_descriptors(x)
    adds = descriptors and _reduces(residual)
    if tile is None:
        reads = residual is not None and not adds
        tile = tile_of("int8_linear", x.device, m, n, k, _default_tile(m, n, k, reads, processors(x)))
    if tile.block_m == 0 and not aligned:
        tile = Tile(16, 64, 128)
    if tile.block_m == 0:
        launch_rows(
            x.view(torch.int32), None, 0.0, x_scale, CODES, weight.view(torch.int32), None, weight_scale, bias,
            scale_out, out, residual, tile, chained,
        )  # fmt: skip
        return
    tiles, split, sums, arrived = splits(x.device, m, n, tile)
    _tiles[(tiles, split)](
        TensorDescriptor.from_tensor(x, [tile.block_m, tile.block_k]) if descriptors else x, x_scale,
        TensorDescriptor.from_tensor(weight, [tile.block_n, tile.block_k]) if descriptors else weight,
        weight_scale, bias, scale_out, out,
        TensorDescriptor.from_tensor(residual, [tile.block_m, tile.block_n]) if adds else residual,
        sums, arrived, m, n, k,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, SPLIT_K=split,
        EVEN_K=k % tile.block_k == 0, DESCRIPTORS=descriptors, ADDS=adds, X_TOKENS=x_scale.numel() > 1,
        W_CHANNELS=weight_scale.numel() > 1, OUT_CHANNELS=scale_out is not None and scale_out.numel() > 1,
        num_warps=tile.warps, num_stages=tile.stages, **launch_options(x, chained),
    )  # fmt: skip


class RowFormat(NamedTuple):
    """How the kernel for few tokens reads a stored weight.

    Attributes:
        load: jit function from pointers, rows and sizes to what is held of a chunk of rows.
        hold: jit function from the words of a token that meet a chunk, a tensor ``[TOKEN_ROWS, CHUNK]`` a part, to
            what ``add`` takes of them.
        add: jit function that adds a chunk's int32 products to sums ``[rows, CHUNK / width]``.
        parts: words of a token that meet a word of the weight.
        width: words of a chunk that share a sum.
    """

    load: Any
    hold: Any
    add: Any
    parts: int
    width: int


CODES = RowFormat(_load_codes, _hold_codes, _add_codes, 1, 1)
"""A weight of int8 codes."""


def splits(device: torch.device, m: int, n: int, tile: Tile) -> tuple[int, int, Tensor | None, Tensor | None]:
    """Return the number of tiles, of parts of K (one if the workspace is too small for more), and the workspace."""
    tiles = triton.cdiv(m, tile.block_m) * triton.cdiv(n, tile.block_n)
    if (
        tile.split_k == 1
        or tiles > _COUNTERS
        or tiles * tile.split_k * tile.block_m * tile.block_n > _WORKSPACE
    ):
        return tiles, 1, None, None
    return tiles, tile.split_k, *workspace(device)


def launch_rows(
    x: Tensor,
    gain: Tensor | None,
    eps: float,
    x_scale: Tensor,
    stored: RowFormat,
    weight: Tensor,
    grid: Tensor | None,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
    out: Tensor | None,
    residual: Tensor | None,
    tile: Tile,
    chained: bool = True,
) -> None:
    """Launch the kernel for few tokens.

    Args:
        x: int32 ``[M, K / 4]``, or with a gain the float hidden ``[M, K]``.
        gain: float32 ``[K]`` of a norm in front, or None.
        eps: of the norm.
        x_scale: float32 ``[1]`` or ``[M, 1]``.
        stored: format of the weight.
        weight: int32 ``[N, …]``, in that format.
        grid: int64 ``[blocks, N]``, if the format has one.
        weight_scale: float32 ``[1]`` or ``[N]``.
        bias: as the rest, see `linear_int8`.
        scale_out: float32 ``[1]`` or ``[N]``.
        out: ``[M, N]``.
        residual: ``[M, N]``.
        tile: how to cut the product.
        chained: whether the launch may start before the one ahead has finished.
    """
    m, n, words = len(x), len(weight), weight.shape[1]
    granule = 0 if grid is None else words // len(grid)
    # All warps along a row where they fit, so that each holds few of a token's words; else a row a warp, or two.
    chunk = next((size for size in (128 * tile.warps, 128, 64) if words % size == 0), 128)
    # Words that a thread holds of a block; as many blocks are in flight as leave it room to work.
    held = triton.cdiv(tile.block_n * triton.cdiv(words, chunk) * chunk, 32 * tile.warps)
    _rows[(triton.cdiv(n, tile.block_n * tile.stages),)](
        x, gain, eps, x_scale, weight, grid, weight_scale, bias, scale_out, out, residual, n, words,
        LOAD=stored.load, HOLD=stored.hold, ADD=stored.add, PARTS=stored.parts, WIDTH=stored.width,
        GRANULE=granule, M=m, X_TOKENS=x_scale.numel() > 1,
        W_CHANNELS=weight_scale.numel() > 1, OUT_CHANNELS=scale_out is not None and scale_out.numel() > 1,
        BLOCK_N=tile.block_n, STEPS=tile.stages, AHEAD=max(min(_WORDS_AHEAD // held, tile.stages), 1),
        CHUNK=chunk, CHUNKS=triton.cdiv(words, chunk),
        # A token's words repeated for each warp's row, or once for all.
        TOKEN_ROWS=1 if chunk == 128 * tile.warps else tile.block_n, ASSEMBLY=not interpreted(_rows),
        num_warps=tile.warps, **launch_options(x, chained),
    )  # fmt: skip


def norm_linear_int8(
    hidden: Tensor,
    gain: Tensor,
    eps: float,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
    *,
    out: Tensor,
    tile: Tile | None = None,
) -> None:
    """Write the linear layer of the quantised RMS norm of a few tokens, in one launch.

    Equal to ``linear_int8(rms_norm(hidden, gain, eps, x_scale), x_scale, …)`` up to the order in which squares
    are added.

    Args:
        hidden: float ``[M, K]``, M at most `MAX_NORM_TOKENS`, K divisible by 16 and at most 16384.
        gain: float32 ``[K]``.
        eps: added to the mean square.
        x_scale: float32 ``[1]``, the scale of the norm's codes.
        weight: as the rest, see `linear_int8`.
        weight_scale: float32 ``[1]`` or ``[N]``.
        bias: float32 ``[N]``.
        scale_out: float32 ``[1]`` or ``[N]``.
        out: ``[M, N]``.
        tile: how to cut the product.

    Raises:
        InputError: more tokens than the kernel is for, or a K that it cannot take.
    """
    m, k = hidden.shape
    n = weight.shape[0]
    expect_few_tokens(m, k, 16)
    expect_one_target(out, None, scale_out)
    tile = tile or tile_of("norm_int8_linear", hidden.device, m, n, k, Tile(0, 4, stages=8))
    launch_rows(
        hidden, gain, eps, x_scale, CODES, weight.view(torch.int32), None, weight_scale, bias, scale_out, out, None,
        tile,
    )  # fmt: skip


def expect_few_tokens(m: int, k: int, unit: int) -> None:
    """Raise unless the kernel for few tokens takes m of them with a norm in front; K in units of so many codes."""
    if not 0 < m <= MAX_NORM_TOKENS or k % unit or k > _MAX_ROWS_K:
        raise InputError(
            f"linear layer after a norm: takes 1 to {MAX_NORM_TOKENS} tokens and a K divisible by {unit}, at most "
            f"{_MAX_ROWS_K}; got {m} tokens, K = {k}; run rms_norm and the layer instead"
        )


def expect_one_target(out: Tensor | None, residual: Tensor | None, scale_out: Tensor | None) -> None:
    """Raise unless a linear layer has one place for its result, of the dtype that scale_out asks for."""
    if (out is None) == (residual is None) or (residual is not None and scale_out is not None):
        raise InputError(
            "a linear layer writes to out, or adds to a residual without scale_out; give one of them"
        )
    if out is not None and (out.dtype == torch.int8) != (scale_out is not None):
        raise InputError(f"a linear layer writes int8 with scale_out and floats without; out is {out.dtype}")


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return an optional tensor in the layout that kernels read."""
    return None if tensor is None else tensor.contiguous()


def _run(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    dtype = torch.float32 if scale_out is None else torch.int8
    out = torch.empty((rows.shape[0], weight.shape[0]), dtype=dtype, device=x.device)
    linear_int8(
        rows, x_scale.contiguous(), weight.contiguous(), weight_scale.contiguous(),
        contiguous(bias), contiguous(scale_out), out=out, chained=False,
    )  # fmt: skip
    return out.view(*x.shape[:-1], weight.shape[0])


int8_linear.register(Kernel("triton", "cuda", _run, lambda *args: None))
