"""Independent implementations of the ops, written from their definitions: loops over tokens and taps, numpy float64.

They share no code with the package. Codes are rounded as the numerics contract has it written down: a product by the
float32 reciprocal, half to even, clamped to ±limit. Arguments are those of the ops (tensors); results are tensors, in
float64 where a tolerance class decides and in float32 where the contract fixes every rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.linalg import hadamard as sylvester
from torch import Tensor

Array = np.ndarray[Any, Any]


def array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


def tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def codes(values: Array, scale: Array, bits: int = 8) -> Array:
    limit = 2 ** (bits - 1) - 1
    steps = values.astype(np.float32) * (np.float32(1.0) / scale.astype(np.float32))
    return np.clip(np.rint(steps), -limit, limit).astype(np.int8)


def value(data: Tensor, scale: Tensor | None) -> Array:
    """Return what codes or a float stand for, in float64."""
    exact = array(data.double())
    return exact if scale is None else exact * array(scale).astype(np.float64)


def channelwise(data: Tensor, scale: Tensor | None) -> Array:
    """Return the same where the scale's channels are the last two dimensions of the data."""
    if scale is None or scale.numel() == 1:
        return value(data, scale)
    return value(data, scale.reshape(data.shape[-2:]))


def emitted(y: Array, scale_out: Tensor | None) -> Tensor:
    return tensor(y if scale_out is None else codes(y, array(scale_out)))


def silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def softplus(x: Array) -> Array:
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0.0)


# Quantisation


def quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    return tensor(codes(array(x), array(scale)))


def quantize_per_token(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    values = array(x).astype(np.float32)
    absmax = np.abs(values).max(axis=-1, keepdims=True)
    scale = np.where(absmax > 0, absmax, np.float32(1.0)) / np.float32(2 ** (bits - 1) - 1)
    return tensor(codes(values, scale, bits)), tensor(scale)


# Linear layer and embedding


def integer_matmul(x: Tensor, weight: Tensor) -> Array:
    return array(x).astype(np.int64) @ array(weight).astype(np.int64).T


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    y = integer_matmul(x, weight).astype(np.float32) * (array(x_scale) * array(weight_scale))
    if bias is not None:
        y = y + array(bias)
    return emitted(y, scale_out)


def nibbles(packed: Tensor) -> Array:
    """Return the codes of bytes that hold two each."""
    halves = np.empty((packed.shape[0], 2 * packed.shape[1]), dtype=np.int64)
    halves[:, 0::2], halves[:, 1::2] = array(packed) % 16, array(packed) // 16
    return np.where(halves < 8, halves, halves - 16)


def int4_linear(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    weight = nibbles(packed)
    scales = array(weight_scale)
    size = weight.shape[1] // scales.shape[1]
    total = np.zeros((*x.shape[:-1], packed.shape[0]), dtype=np.float32)
    for group in range(scales.shape[1]):
        columns = slice(group * size, (group + 1) * size)
        products = array(x)[..., columns].astype(np.int64) @ weight[:, columns].T
        total = total + products.astype(np.float32) * scales[:, group]
    y = total * array(x_scale)
    if bias is not None:
        y = y + array(bias)
    return emitted(y, scale_out)


def float_linear(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    grid: Tensor | None,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    exact = nibbles(weight).astype(np.float64) if weight.dtype == torch.uint8 else array(weight.double())
    if grid is not None:
        size = exact.shape[1] // grid.shape[1]
        multiplier, zeros = array(grid).astype(np.int64) % 16, array(grid).astype(np.int64) // 16 - 8
        exact = (exact - zeros.repeat(size, axis=1)) * multiplier.repeat(size, axis=1)
    elif zero_point is not None:
        exact = exact - array(zero_point).repeat(exact.shape[1] // zero_point.shape[1], axis=1)
    if scale is not None:
        steps = array(scale.double()).reshape(len(scale), -1)
        exact = exact * steps.repeat(exact.shape[1] // steps.shape[1], axis=1)
    y = array(x.double()) @ exact.T
    if bias is not None:
        y = y + array(bias.double())
    return emitted(y, scale_out)


def int4_progressive_linear(
    x: Tensor,
    x_scale: Tensor,
    packed: Tensor,
    grid: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    multiplier, zero_point = array(grid).astype(np.int64) % 16, array(grid).astype(np.int64) // 16 - 8
    size = 2 * packed.shape[1] // grid.shape[1]
    weight = (nibbles(packed) - zero_point.repeat(size, axis=1)) * multiplier.repeat(size, axis=1)
    assert np.abs(weight).max(initial=0) <= 127
    return int8_linear(x, x_scale, torch.from_numpy(weight), weight_scale, bias, scale_out)


def outlier_linear(
    x: Tensor,
    threshold: float,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    values = array(x.reshape(-1, x.shape[-1])).astype(np.float16).astype(np.float32)
    outlier = np.abs(values) >= threshold
    columns = outlier.any(axis=0)
    below = np.where(outlier, np.float32(0.0), values)
    scale = array(quantize_per_token(tensor(below), 8)[1])
    found = np.where(columns, 0, codes(below, scale)).astype(np.int64)
    scales = np.broadcast_to(array(weight_scale), (len(weight),))
    rows = array(weight).astype(np.float32) * scales[:, None]
    exact = values[:, columns].astype(np.float64) @ rows.astype(np.float16)[:, columns].astype(np.float64).T
    y = (found @ array(weight).astype(np.int64).T).astype(np.float64) * (scale * scales).astype(
        np.float64
    ) + exact
    if bias is not None:
        y = y + array(bias)
    return emitted(y.reshape(*x.shape[:-1], len(weight)), scale_out)


def mixed_linear(
    x: Tensor,
    order: Tensor,
    packed: Tensor,
    weight_scale: Tensor,
    outliers: Tensor,
    outlier_scale: Tensor,
    bits: int,
    clip: float,
    bias: Tensor | None,
    scale_out: Tensor | None,
) -> Tensor:
    values = array(x).astype(np.float32)[..., array(order)]
    ordinary = nibbles(packed)
    scales, groups = array(weight_scale), weight_scale.shape[1]
    size = ordinary.shape[1] // groups

    def term(part: Array, width: int, share: float, weight: Array, scale: Array) -> Array:
        absmax = np.abs(part).max(axis=-1, keepdims=True).astype(np.float64) * share
        steps = np.where(absmax > 0, absmax, 1.0) / (2 ** (width - 1) - 1)
        steps = np.maximum(steps, np.finfo(np.float32).tiny).astype(np.float32)
        products = codes(part, steps, width).astype(np.int64) @ weight.astype(np.int64).T
        return products.astype(np.float32) * (steps * scale)

    total = np.zeros((*x.shape[:-1], packed.shape[0]), dtype=np.float32)
    for group in range(groups):
        columns = slice(group * size, (group + 1) * size)
        total = total + term(values[..., columns], bits, clip, ordinary[:, columns], scales[:, group])
    y = total + term(values[..., groups * size :], 8, 1.0, array(outliers), array(outlier_scale))
    if bias is not None:
        y = y + array(bias)
    return emitted(y, scale_out)


def int8_embedding(ids: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    rows = np.empty((ids.numel(), weight.shape[1]), dtype=np.float32)
    scales = array(scale.expand(weight.shape[0]))
    for place, row in enumerate(ids.flatten().tolist()):
        rows[place] = array(weight)[row].astype(np.float32) * scales[row]
    return tensor(rows.reshape(*ids.shape, weight.shape[1]))


def int4_embedding(ids: Tensor, packed: Tensor, scale: Tensor) -> Tensor:
    width, groups = 2 * packed.shape[1], scale.shape[1]
    rows = np.empty((ids.numel(), width), dtype=np.float32)
    for place, row in enumerate(ids.flatten().tolist()):
        for column in range(width):
            nibble = int(packed[row, column // 2]) >> (4 * (column % 2)) & 15
            code = nibble - 16 if nibble > 7 else nibble
            rows[place, column] = np.float32(code) * array(scale)[row, column * groups // width]
    return tensor(rows.reshape(*ids.shape, width))


# Convolution


def causal_conv1d(
    x: Tensor,
    x_scale: Tensor | None,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    state: Tensor,
    scale_out: Tensor | None,
) -> tuple[Tensor, Tensor]:
    inputs = np.concatenate([value(state.transpose(1, 2), x_scale), value(x, x_scale)], axis=1)
    kernel = value(weight, weight_scale if weight_scale is None else weight_scale[:, None])
    batch, length, channels = x.shape
    taps = weight.shape[1]
    y = np.zeros((batch, length, channels))
    for t in range(length):
        for back in range(taps):  # the newest token meets the last tap
            y[:, t] += inputs[:, taps + t - back] * kernel[:, taps - 1 - back]
    if bias is not None:
        y += array(bias)
    newest = torch.cat([state, x.transpose(1, 2)], dim=2)[..., length:]
    return emitted(silu(y), scale_out), newest


# Norms and gate


def rms(x: Array, eps: float) -> Array:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float, scale_out: Tensor | None) -> Tensor:
    return emitted(rms(value(x, None), eps) * array(weight), scale_out)


def gate(y: Tensor, z: Tensor, z_scale: Tensor | None, hadamard: bool, scale_out: Tensor | None) -> Tensor:
    gated = value(y, None) * silu(value(z, z_scale))
    return emitted(_transformed(gated) if hadamard else gated, scale_out)


def gated_rms_norm(
    y: Tensor,
    z: Tensor,
    z_scale: Tensor | None,
    weight: Tensor,
    eps: float,
    group_size: int,
    hadamard: bool,
    scale_out: Tensor | None,
) -> Tensor:
    gated = value(y, None) * silu(value(z, z_scale))
    for start in range(0, gated.shape[-1], group_size):
        group = slice(start, start + group_size)
        gated[..., group] = rms(gated[..., group], eps)
    gated = gated * array(weight)
    return emitted(_transformed(gated) if hadamard else gated, scale_out)


# Hadamard transform


def paley(q: int) -> Array:
    """Return Paley's matrix of a prime q: order q + 1 for q = 3 mod 4, 2 (q + 1) for q = 1 mod 4."""
    squares = {i * i % q for i in range(1, q)}
    sign = 1 if q % 4 == 1 else -1
    core = np.zeros((q + 1, q + 1), dtype=np.int8)
    for i in range(q + 1):
        for j in range(q + 1):
            if i == j:
                continue
            if i == 0 or j == 0:
                core[i, j] = 1 if i == 0 else sign
            else:
                core[i, j] = 1 if (i - j) % q in squares else -1
    if sign == -1:
        return core + np.eye(q + 1, dtype=np.int8)
    blocks = {0: [[1, -1], [-1, -1]], 1: [[1, 1], [1, -1]], -1: [[-1, -1], [-1, 1]]}
    return np.block([[np.array(blocks[int(entry)], dtype=np.int8) for entry in row] for row in core])


PALEY_PRIME = {12: 11, 20: 19, 28: 13, 36: 17, 44: 43, 60: 59}  # order -> prime


def hadamard_matrix(n: int) -> Array:
    """Return ``H_{2^k} kron H_m``, entries ±1, with the smallest m of the table that fits; int8 ``[n, n]``."""
    for m in (1, *PALEY_PRIME):
        if n % m == 0 and (n // m).bit_count() == 1:
            small = np.ones((1, 1), dtype=np.int8) if m == 1 else paley(PALEY_PRIME[m])
            return np.kron(sylvester(n // m, dtype=np.int8), small)
    raise ValueError(n)


def _transformed(x: Array) -> Array:
    n = x.shape[-1]
    return x @ hadamard_matrix(n).astype(np.float64).T / np.sqrt(n)


def hadamard(x: Tensor) -> Tensor:
    return tensor(_transformed(value(x, None)))


# Scans


class Kept:
    """A recurrent state as it is kept: rounded, for a reduced one, after every ``interval``-th token."""

    def __init__(self, state: Tensor, state_scale: Tensor | None, interval: int) -> None:
        self.scale = None if state_scale is None else array(state_scale)
        self.half = state.dtype == torch.float16
        self.interval = interval
        self.at_rest: Array = array(state)
        self.margin = np.inf
        self.now = self._read()

    def _read(self) -> Array:
        exact = self.at_rest.astype(np.float64)
        return exact if self.scale is None else exact * self.scale.astype(np.float64)

    def after(self, token: int, h: Array) -> None:
        """Take the state after a token (counted from 1)."""
        self.now = h
        if not self.interval:
            self.at_rest = h
        elif token % self.interval == 0:
            if self.scale is None:
                rounded = h.astype(np.float16)
                # The spacing below: a number just under a power of two has the smaller of two neighbours' spacings.
                spacing = np.spacing((np.abs(h) * (1 - 2**-10)).astype(np.float16)).astype(np.float64)
                distance = np.abs(h - rounded.astype(np.float64)) / spacing
            else:
                rounded = codes(h, self.scale)
                steps = h / self.scale
                distance = np.where(np.abs(steps) > 127.5, 0.0, np.abs(steps - rounded))
            self.margin = min(self.margin, float((0.5 - distance).min()))
            self.at_rest = rounded
            self.now = self._read()


def ssd_with_margin(
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
) -> tuple[Tensor, Tensor, float]:
    """Return y, the state, and how far from the middle between two codes the state was at its roundings, in codes."""
    xs, bs, cs = channelwise(x, x_scale), channelwise(B, B_scale), channelwise(C, C_scale)
    steps = np.clip(softplus(value(dt, dt_scale) + array(dt_bias)), dt_min, dt_max)
    batch, length, heads, headdim = x.shape
    per_group = heads // B.shape[2]
    kept = Kept(state, state_scale, interval)
    y = np.zeros((batch, length, heads, headdim))
    for t in range(length):
        h = kept.now.copy()
        for head in range(heads):
            step = steps[:, t, head, None, None]  # [B, 1, 1]
            b, c = bs[:, t, head // per_group], cs[:, t, head // per_group]  # [B, N]
            added = step * xs[:, t, head, :, None] * b[:, None, :]
            h[:, head] = np.exp(step * float(A[head])) * h[:, head] + added
            y[:, t, head] = (h[:, head] * c[:, None, :]).sum(-1) + float(D[head]) * xs[:, t, head]
        kept.after(t + 1, h)
    return tensor(y), tensor(kept.at_rest), kept.margin


def selective_scan_with_margin(
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
) -> tuple[Tensor, Tensor, float]:
    """Return y, the state, and the margin of its roundings, as `ssd_with_margin`."""
    xs, bs, cs = value(x, x_scale), value(B, B_scale), value(C, C_scale)
    steps = softplus(value(dt, dt_scale) + array(dt_bias))
    kept = Kept(state, state_scale, interval)
    y = np.zeros(x.shape)
    for t in range(x.shape[1]):
        step = steps[:, t, :, None]  # [B, C, 1]
        h = np.exp(step * array(A)) * kept.now + step * xs[:, t, :, None] * bs[:, t, None, :]
        y[:, t] = (h * cs[:, t, None, :]).sum(-1) + array(D) * xs[:, t]
        kept.after(t + 1, h)
    return tensor(y), tensor(kept.at_rest), kept.margin


def ssd(*args: Any) -> tuple[Tensor, Tensor]:
    y, state, _ = ssd_with_margin(*args)
    return y, state


def selective_scan(*args: Any) -> tuple[Tensor, Tensor]:
    y, state, _ = selective_scan_with_margin(*args)
    return y, state
