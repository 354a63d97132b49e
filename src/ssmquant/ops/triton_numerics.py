# mypy: disable-error-code="no-untyped-def, untyped-decorator, no-untyped-call"
"""Arithmetic that all Triton kernels share: the numerics contract on the device, and how launches follow each other.

Everything here is plain Triton without libdevice or assembly (except `dot4`'s and the launch hints'), so the same
code runs on every GPU since Ampere and in Triton's interpreter. Kernels are compiled with
``enable_fp_fusion=False`` (`EXACT`): a product and a sum are rounded apart, as in the references; where one
rounding is meant, the kernel writes `tl.fma`.

    y = total.to(tl.float32) * (x_scale * weight_scale)
    tl.store(out, quantize(y, reciprocal(scale_out)))
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = [
    "EXACT",
    "chains_launches",
    "dot4",
    "exp",
    "interpreted",
    "launch_options",
    "let_next_start",
    "log1p",
    "quantize",
    "reciprocal",
    "round_to_codes",
    "rsqrt",
    "sigmoid",
    "silu",
    "softplus",
    "wait_for_previous",
]

EXACT = {"enable_fp_fusion": False}
"""Compile option of every kernel: no contraction of a product and a sum into one rounding."""


def interpreted(kernel: object) -> bool:
    """Return whether a kernel was defined under ``TRITON_INTERPRET=1`` and so runs on CPU tensors."""
    return not isinstance(kernel, triton.runtime.JITFunction)


@cache
def chains_launches(device: int) -> bool:
    """Return whether a device has programmatic dependent launch."""
    return torch.cuda.get_device_capability(device) >= (9, 0)


def launch_options(tensor: Tensor, chained: bool = True) -> dict[str, bool]:
    """Return the keyword arguments ``PDL`` (a constexpr of the kernel), ``launch_pdl`` and `EXACT` of a launch.

    With programmatic dependent launch (Hopper and later) a kernel may start before the one ahead of it has finished.
    Such a kernel calls `wait_for_previous` before it touches anything that another kernel wrote or may still read, and
    `let_next_start` as early as it likes. Weights it may read before: then nothing on the stream may still write them.

    Args:
        tensor: any tensor of the launch: its device decides.
        chained: whether to launch so at all.
    """
    pdl = chained and tensor.is_cuda and chains_launches(tensor.device.index)
    return {"PDL": pdl, "launch_pdl": pdl, **EXACT}


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    """Wait until the launch ahead has finished and all that it wrote can be read; nothing without PDL."""
    if PDL:
        gdc_wait()


@triton.jit
def let_next_start(PDL: tl.constexpr):
    """Allow the next launch to start where there is room; its `wait_for_previous` still waits for all of this one."""
    if PDL:
        gdc_launch_dependents()


@triton.jit
def reciprocal(scale):
    """Return ``1 / scale`` rounded to nearest, as `numerics.quantize` uses it."""
    return tl.div_rn(tl.full(scale.shape, 1.0, tl.float32), scale)


@triton.jit
def round_to_codes(x, LIMIT: tl.constexpr = 127.0):
    """Return float32 values in units of one code as int8: rounded half to even and clamped to ``[-LIMIT, LIMIT]``."""
    # Clamped first (the limits are integers, so the order is free), a value is small enough for the sum with
    # 1.5 * 2**23 to round it to an integer, half to even, which then stands in the low bits of the sum.
    clamped = tl.minimum(tl.maximum(x, -LIMIT), LIMIT)
    return (clamped + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def quantize(x, inverse_scale, LIMIT: tl.constexpr = 127.0):
    """Return the int8 codes of float32 ``x``, as `numerics.quantize`; takes the `reciprocal` of the scale."""
    return round_to_codes(x * inverse_scale, LIMIT)


@triton.jit
def exp(x):
    """Return ``exp(x)`` within 2 ulp for every float32; `tl.exp` loses ``|x|`` ulp."""
    # x = n ln 2 + r with |r| <= ln 2 / 2, in two steps since ln 2 is no float32; ex2.approx is good for small r.
    n = tl.minimum(tl.maximum(x * 1.4426950408889634, -126.0), 127.0) + 12582912.0 - 12582912.0
    r = tl.fma(n, -0.693145751953125, x)
    r = tl.fma(n, -1.428606765330187e-06, r)
    power = ((n.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.exp2(r * 1.4426950408889634) * power


@triton.jit
def sigmoid(x):
    """Return ``1 / (1 + exp(-x))``."""
    return 1.0 / (1.0 + exp(-x))


@triton.jit
def silu(x):
    """Return ``x / (1 + exp(-x))``."""
    return x / (1.0 + exp(-x))


@triton.jit
def log1p(x):
    """Return ``log(1 + x)`` for x in [0, 1], within a few ulp also where x is tiny."""
    # log(1 + x) = 2 artanh(z) with z = x / (2 + x) <= 1/3, as a series in z**2: the next term is below 2**-26
    # of the sum.
    z = x / (2.0 + x)
    s = z * z
    p = tl.fma(s, 1.0 / 13.0, 1.0 / 11.0)
    p = tl.fma(s, p, 1.0 / 9.0)
    p = tl.fma(s, p, 1.0 / 7.0)
    p = tl.fma(s, p, 1.0 / 5.0)
    p = tl.fma(s, p, 1.0 / 3.0)
    return 2.0 * tl.fma(z * s, p, z)


@triton.jit
def softplus(x):
    """Return ``log(1 + exp(x))`` for every float32."""
    return tl.maximum(x, 0.0) + log1p(exp(-tl.abs(x)))


@triton.jit
def rsqrt(x):
    """Return ``1 / sqrt(x)``, both steps rounded to nearest."""
    return reciprocal(tl.sqrt_rn(x))


@triton.jit
def _byte(word, INDEX: tl.constexpr):
    return (word << (24 - 8 * INDEX)) >> 24


@triton.jit
def dot4(a, b, c, ASSEMBLY: tl.constexpr):
    """Return ``c`` plus the dot product of the four int8 in each int32 of ``a`` and ``b`` (dp4a), elementwise.

    Args:
        a: int32, four codes each.
        b: int32, four codes each; broadcast to ``a``'s shape by the caller.
        c: int32.
        ASSEMBLY: whether to use the instruction; the interpreter cannot.
    """
    if ASSEMBLY:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1
        )
    for i in tl.static_range(4):
        c += _byte(a, i) * _byte(b, i)
    return c
