# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Mamba-2's scan on GPUs where not all of x, dt, B and C are codes: a float32 state, in registers.

A program has some rows of one head's state and walks through the sequence in chunks, each a few products on tensor
cores: their factors are sums of two float16 terms (22 bits, after scaling rows by powers of two), so that the result is
float32's; those of B and C, which heads share, are written beforehand. Sums of decays are float64's, as in the
reference, and logarithms to base two. One token is elementwise and has a kernel of its own.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ssmquant.ops.hadamard.triton import power_of_two_above, split
from ssmquant.ops.int8_linear.triton import processors
from ssmquant.ops.registry import Kernel
from ssmquant.ops.ssd import ssd
from ssmquant.ops.ssd.triton import discretized
from ssmquant.ops.triton_numerics import exp, launch_options, let_next_start, wait_for_previous

__all__: list[str] = []

_CHUNK = 64
# Of a state that a program has, and the least width of a product: narrower ones came out wrong on Hopper, as
# `_MANY_IN_PARTS` of the Hadamard transform has it.
_ROWS = 64
_FETCHING_AHEAD = 200_000  # bytes of shared memory that a program needs to load the next chunk meanwhile
_PREPARED = 16  # tokens whose B or C a program writes
_STEP_ROWS = 16
_MAX_WIDTH = 128


@triton.jit
def _value(data, scale, at, channel, inside, known):
    """Load codes or floats as float32; ``channel`` is where the scale of each is, ``known`` whether there is one."""
    value = tl.load(data + at, mask=inside, other=0).to(tl.float32)
    if scale is not None:
        value = value * tl.load(scale + channel, mask=known, other=0.0)
    return value


@triton.jit
def _scaled(v):
    """Return the rows of a matrix as two float16 terms below 1, and the powers of two that they are in units of."""
    size, inverse = power_of_two_above(tl.max(tl.abs(v), 1))
    high, low = split(v * inverse[:, None])
    return high, low, size


@triton.jit
def _product(high, low, other_high, other_low):
    """Return the product of two matrices of two float16 terms each; the product of the low ones is below 2**-24."""
    total = tl.dot(high, other_low)
    total = tl.dot(low, other_high, total)
    return tl.dot(high, other_high, total)


@triton.jit
def _prepare(
    B, B_scale, C, C_scale, terms, sizes, length, groups, B_row, B_token, C_row, C_token,
    D_STATE: tl.constexpr, B_STEP: tl.constexpr, C_STEP: tl.constexpr,
    TOKENS: tl.constexpr, N_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Write B and C as `_scaled` has them: terms ``[B, L, G, B or C, high or low, N]``, sizes ``[B, L, G, B or C]``."""
    wait_for_previous(PDL)
    let_next_start(PDL)
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    group = tl.program_id(1)
    row = (tl.program_id(2) // 2).to(tl.int64)
    n = tl.arange(0, N_TILE)
    in_n = (n < D_STATE)[None, :]
    inside = (token < length)[:, None] & in_n
    channel = (group * D_STATE + n)[None, :]
    which = tl.program_id(2) % 2
    if which == 0:
        at = row * B_row + token[:, None] * B_token + channel
        value = _value(B, B_scale, at, channel * B_STEP, inside, in_n)
    else:
        at = row * C_row + token[:, None] * C_token + channel
        value = _value(C, C_scale, at, channel * C_STEP, inside, in_n)
    high, low, size = _scaled(value)
    place = ((row * length + token) * groups + group) * 2 + which
    tl.store(sizes + place, size, mask=token < length)
    at = terms + place[:, None] * (2 * D_STATE) + n[None, :]
    tl.store(at, high, mask=inside)
    tl.store(at + D_STATE, low, mask=inside)


@triton.jit
def _scan(
    x, x_scale, dt, dt_scale, A, terms, sizes, D, dt_bias, dt_min, dt_max, state, y, after,
    length, heads, groups, x_row, x_token, dt_row, dt_token,
    HEADDIM: tl.constexpr, D_STATE: tl.constexpr, HEADS_A_GROUP: tl.constexpr, X_STEP: tl.constexpr,
    DT_STEP: tl.constexpr, TOKENS: tl.constexpr, P_TILE: tl.constexpr, N_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    wait_for_previous(PDL)
    let_next_start(PDL)
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    group = head // HEADS_A_GROUP
    p = tl.program_id(1) * P_TILE + tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    t = tl.arange(0, TOKENS)
    in_p, in_n = p < HEADDIM, n < D_STATE
    rate, bias, skip = tl.load(A + head), tl.load(dt_bias + head), tl.load(D + head)
    channel = head * HEADDIM + p
    home = (row * heads + head) * (HEADDIM * D_STATE) + p[:, None] * D_STATE + n[None, :]
    tile = in_p[:, None] & in_n[None, :]
    h = tl.load(state + home, mask=tile, other=0.0)
    for start in range(0, length, TOKENS):
        token = start + t
        there = token < length
        steps = _value(dt, dt_scale, row * dt_row + token * dt_token + head, head * DT_STEP, there, True)
        steps = discretized(steps, 1.0, bias, dt_min, dt_max, there)
        # In float64, because what counts are differences. A token beyond the end has dt 0 and changes nothing.
        logs = (steps * rate).to(tl.float64) * 1.4426950408889634
        decay = tl.cumsum(logs, 0)
        whole = tl.sum(logs, 0)
        place = ((row * length + token) * groups + group) * 2
        b_size = tl.load(sizes + place, mask=there, other=0.0)
        c_size = tl.load(sizes + place + 1, mask=there, other=0.0)
        at = terms + place[:, None] * (2 * D_STATE) + n[None, :]
        valid = there[:, None] & in_n[None, :]
        # In the order that keeps little in shared memory, so that a multiprocessor has room for two programs.
        c_high = tl.load(at + 2 * D_STATE, mask=valid, other=0.0)
        c_low = tl.load(at + 3 * D_STATE, mask=valid, other=0.0)
        high, low, size = _scaled(h)
        carried = _product(c_high, c_low, tl.trans(high), tl.trans(low)) * size[None, :]
        b_high = tl.load(at, mask=valid, other=0.0)
        b_low = tl.load(at + D_STATE, mask=valid, other=0.0)
        scores = _product(c_high, c_low, tl.trans(b_high), tl.trans(b_low))
        valid = there[:, None] & in_p[None, :]
        inputs = _value(
            x, x_scale, row * x_row + token[:, None] * x_token + channel[None, :], channel[None, :] * X_STEP, valid,
            in_p[None, :],
        )  # fmt: skip
        weight = steps * tl.exp2((whole - decay).to(tl.float32)) * b_size
        high, low, size = _scaled(tl.trans(inputs * weight[:, None]))
        h = h * tl.exp2(whole.to(tl.float32)) + _product(high, low, b_high, b_low) * size[:, None]
        x_high, x_low, x_size = _scaled(inputs)
        # Above 0 only where a token would see later ones.
        between = tl.exp2(tl.minimum((decay[:, None] - decay[None, :]).to(tl.float32), 0.0))
        between = between * (steps * b_size * x_size)[None, :]
        high, low, size = _scaled(tl.where(t[:, None] >= t[None, :], scores * between, 0.0))
        within = _product(high, low, x_high, x_low) * (size * c_size)[:, None]
        result = within + carried * (tl.exp2(decay.to(tl.float32)) * c_size)[:, None] + inputs * skip
        y_at = y + ((row * length + token[:, None]) * heads + head) * HEADDIM + p[None, :]
        tl.store(y_at, result, mask=valid)
    tl.store(after + home, h, mask=tile)


@triton.jit
def _step(
    x, x_scale, dt, dt_scale, A, B, B_scale, C, C_scale, D, dt_bias, dt_min, dt_max, state, y, after,
    heads, x_row, dt_row, B_row, C_row,
    HEADDIM: tl.constexpr, D_STATE: tl.constexpr, HEADS_A_GROUP: tl.constexpr,
    X_STEP: tl.constexpr, DT_STEP: tl.constexpr, B_STEP: tl.constexpr, C_STEP: tl.constexpr,
    P_TILE: tl.constexpr, N_TILE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """One token: ``x``, ``dt``, ``B`` and ``C`` are rows of it."""
    wait_for_previous(PDL)
    let_next_start(PDL)
    row = (tl.program_id(0) // heads).to(tl.int64)
    head = tl.program_id(0) % heads
    p = tl.program_id(1) * P_TILE + tl.arange(0, P_TILE)
    n = tl.arange(0, N_TILE)
    in_p, in_n = p < HEADDIM, n < D_STATE
    channel = head * HEADDIM + p
    shared = head // HEADS_A_GROUP * D_STATE + n
    home = (row * heads + head) * (HEADDIM * D_STATE) + p[:, None] * D_STATE + n[None, :]
    tile = in_p[:, None] & in_n[None, :]
    h = tl.load(state + home, mask=tile, other=0.0)
    steps = _value(dt, dt_scale, row * dt_row + head, head * DT_STEP, True, True)
    steps = discretized(steps, 1.0, tl.load(dt_bias + head), dt_min, dt_max, True)
    inputs = _value(x, x_scale, row * x_row + channel, channel * X_STEP, in_p, in_p)
    b = _value(B, B_scale, row * B_row + shared, shared * B_STEP, in_n, in_n)
    c = _value(C, C_scale, row * C_row + shared, shared * C_STEP, in_n, in_n)
    h = h * exp(steps * tl.load(A + head)) + (steps * inputs)[:, None] * b[None, :]
    result = tl.sum(h * c[None, :], 1) + tl.load(D + head) * inputs
    tl.store(y + row * heads * HEADDIM + channel, result, mask=in_p)
    tl.store(after + home, h, mask=tile)


def _dense(tensor: Tensor, dimensions: int) -> Tensor:
    """Return a tensor whose last dimensions lie close together; the others may lie apart."""
    shape, strides = tensor.shape[-dimensions:], tensor.stride()[-dimensions:]
    close = strides[-1] == 1 and all(
        strides[i] == strides[i + 1] * shape[i + 1] for i in range(dimensions - 1)
    )
    return tensor if close else tensor.contiguous()


@cache
def _shared_memory(device: int) -> int:
    """Return the most bytes of shared memory that a program can have."""
    properties: dict[str, int] = triton.runtime.driver.active.utils.get_device_properties(device)
    return properties["max_shared_mem"]


def _stages(x: Tensor, programs: int) -> int:
    """Return how many chunks of `_scan` are under way: two where a multiprocessor has one program and room for it."""
    alone = x.is_cuda and programs <= processors(x)
    return 2 if alone and _shared_memory(x.device.index) >= _FETCHING_AHEAD else 1


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
    dt_min: float,
    dt_max: float,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> tuple[Tensor, Tensor]:
    batch, length, heads, headdim = x.shape
    groups, d_state = B.shape[2:]
    x, dt, B, C, state = _dense(x, 2), _dense(dt, 1), _dense(B, 2), _dense(C, 2), state.contiguous()
    y = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    after = torch.empty(state.shape, dtype=torch.float32, device=x.device)
    x_step, dt_step, B_step, C_step = (
        int(scale is not None and scale.numel() > 1) for scale in (x_scale, dt_scale, B_scale, C_scale)
    )
    width = triton.next_power_of_2(d_state)
    options = launch_options(x)
    if length == 1:
        _step[batch * heads, triton.cdiv(headdim, _STEP_ROWS)](
            x, x_scale, dt, dt_scale, A, B, B_scale, C, C_scale, D, dt_bias, dt_min, dt_max, state, y, after,
            heads, x.stride(0), dt.stride(0), B.stride(0), C.stride(0),
            headdim, d_state, heads // groups, x_step, dt_step, B_step, C_step, _STEP_ROWS, width,
            num_warps=2, **options,
        )  # fmt: skip
        return y, after
    terms = torch.empty((batch, length, groups, 2, 2, d_state), dtype=torch.float16, device=x.device)
    sizes = torch.empty((batch, length, groups, 2), dtype=torch.float32, device=x.device)
    _prepare[triton.cdiv(length, _PREPARED), groups, 2 * batch](
        B, B_scale, C, C_scale, terms, sizes, length, groups,
        B.stride(0), B.stride(1), C.stride(0), C.stride(1), d_state, B_step, C_step, _PREPARED, width,
        num_warps=4, **options,
    )  # fmt: skip
    _scan[batch * heads, triton.cdiv(headdim, _ROWS)](
        x, x_scale, dt, dt_scale, A, terms, sizes, D, dt_bias, dt_min, dt_max, state, y, after,
        length, heads, groups, x.stride(0), x.stride(1), dt.stride(0), dt.stride(1),
        headdim, d_state, heads // groups, x_step, dt_step, _CHUNK, _ROWS, max(width, _ROWS),
        num_warps=4, num_stages=_stages(x, batch * heads * triton.cdiv(headdim, _ROWS)), **options,
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
    dt_min: float,
    dt_max: float,
    state: Tensor,
    state_scale: Tensor | None,
    interval: int,
) -> str | None:
    if A.dtype != torch.float32:
        return f"scans in float32, not {A.dtype}"
    if state.dtype != torch.float32:
        return (
            f"scans floats with a float32 state; one of {state.dtype} needs codes for all of x, dt, B and C"
        )
    if B.shape[-1] > _MAX_WIDTH:
        return f"holds states of at most {_MAX_WIDTH} columns, not {B.shape[-1]}"
    return None


ssd.register(Kernel("triton", "cuda", _run, _supports))
