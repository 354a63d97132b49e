"""The C++ scans, convolution and norms at the sizes of models, in pieces, and with any number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant.ops import use_backend
from ssmquant.ops.causal_conv1d import causal_conv1d
from ssmquant.ops.gated_rms_norm import gated_rms_norm
from ssmquant.ops.registry import Op
from ssmquant.ops.selective_scan import selective_scan
from ssmquant.ops.ssd import ssd
from ssmquant.tolerance import assert_equal_codes, assert_float32, assert_requantised

from .cases import Args, Draw

native = pytest.importorskip("ssmquant._native", reason="the compiled extension is not built")


def both(op: Op, args: Args) -> tuple[Any, Any]:
    with use_backend("cpu"):
        fast = op(*args)
    with use_backend("reference"):
        return fast, op(*args)


def ssd_args(draw: Draw, length: int, *, groups: int = 1, state: str = "float32", codes: bool = True) -> Args:
    """Return arguments of eight heads of 64 channels with 128 states, the scales as `quamba2-w8a8` has them."""
    heads, headdim, d_state = 8, 64, 128

    def tensor(*shape: int, scales: Tensor, size: float) -> tuple[Tensor, Tensor | None]:
        return (draw.codes(*shape), scales) if codes else (draw.normal(*shape, size=size), None)

    shared = draw.scale(groups, absmax=2.0).repeat_interleave(d_state)
    x, x_scale = tensor(1, length, heads, headdim, scales=draw.scale(heads * headdim), size=1.0)
    dt, dt_scale = tensor(1, length, heads, scales=draw.scale(1), size=1.0)
    B, B_scale = tensor(1, length, groups, d_state, scales=shared, size=1.0)
    C, C_scale = tensor(1, length, groups, d_state, scales=shared * 1.5, size=1.0)
    at_rest: tuple[Tensor, Tensor | None, int] = {
        "float32": (draw.normal(1, heads, headdim, d_state), None, 0),
        "float16": (draw.normal(1, heads, headdim, d_state).half(), None, 16),
        "int8": (
            draw.codes(1, heads, headdim, d_state),
            draw.scale(4, d_state, absmax=40.0)
            .repeat_interleave(heads * headdim // 4, dim=0)
            .view(heads, headdim, -1),
            64,
        ),
    }[state]
    return (
        x, x_scale, dt, dt_scale, -draw.uniform(heads, low=0.1, high=16.0), B, B_scale, C, C_scale, draw.normal(heads),
        draw.uniform(heads, low=-6.0, high=-1.0), 0.0, float("inf"), *at_rest,
    )  # fmt: skip


@pytest.mark.parametrize("codes", [True, False], ids=["codes", "floats"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("length", [1, 7, 64, 200])
def test_ssd(length: int, groups: int, codes: bool) -> None:
    args = ssd_args(Draw(length + groups), length, groups=groups, codes=codes)
    (y, state), (y_exact, state_exact) = both(ssd, args)
    assert_float32(y, y_exact, length * 128)
    assert_float32(state, state_exact, length)


@pytest.mark.parametrize("state", ["float16", "int8"])
def test_ssd_rounds_at_the_interval(state: str) -> None:
    # One rounding: behind a second one, a code that fell the other way would be part of the sums.
    args = ssd_args(Draw(3), 16 if state == "float16" else 64, state=state)
    (y, rounded), (y_exact, rounded_exact) = both(ssd, args)
    assert_float32(y, y_exact, 64 * 128)
    if state == "int8":
        assert_requantised(rounded, rounded_exact)
    else:
        assert (rounded != rounded_exact).float().mean() < 1e-2
        assert (rounded.float() - rounded_exact.float()).abs().max() <= 2**-8 * rounded_exact.abs().max()


def test_ssd_steps_are_one_prefill() -> None:
    args = ssd_args(Draw(4), 70)
    with use_backend("cpu"):
        y, last = ssd(*args)
        state, outputs = args[-3], []
        for t in range(70):
            token = [a[:, t : t + 1] if place in (0, 2, 5, 7) else a for place, a in enumerate(args)]
            y_t, state = ssd(*token[:-3], state, *token[-2:])
            outputs.append(y_t)
    assert_float32(torch.cat(outputs, dim=1), y, 70 * 128)
    assert_float32(state, last, 70)


@pytest.mark.parametrize("channels", [1, 16, 100, 192])
@pytest.mark.parametrize("length", [1, 63, 130])
def test_selective_scan(length: int, channels: int) -> None:
    draw = Draw(length + channels)
    args = (
        draw.codes(2, length, channels), draw.scale(1), draw.codes(2, length, channels), draw.scale(1),
        -torch.arange(1.0, 17.0).repeat(channels, 1), draw.codes(2, length, 16), draw.scale(1),
        draw.codes(2, length, 16), draw.scale(1), draw.normal(channels), draw.uniform(channels, low=-6.0, high=-1.0),
        draw.normal(2, channels, 16), None, 0,
    )  # fmt: skip
    (y, state), (y_exact, state_exact) = both(selective_scan, args)
    assert_float32(y, y_exact, length * 16)
    assert_float32(state, state_exact, length)


@pytest.mark.parametrize("length", [1, 3, 100])
def test_causal_conv1d(length: int) -> None:
    draw, channels = Draw(length), 1792
    args = (
        draw.codes(2, length, channels), draw.scale(channels), draw.codes(channels, 4),
        draw.scale(channels, absmax=0.5), draw.normal(channels), draw.codes(2, channels, 4),
        draw.scale(channels, absmax=4.0),
    )  # fmt: skip
    (y, state), (y_exact, state_exact) = both(causal_conv1d, args)
    assert_requantised(y, y_exact)
    assert_equal_codes(state, state_exact)


@pytest.mark.parametrize("channels", [1536, 2048, 5120])
@pytest.mark.parametrize("hadamard", [False, True])
def test_gated_rms_norm(channels: int, hadamard: bool) -> None:
    draw = Draw(channels)
    args = (
        draw.normal(5, channels), draw.codes(5, channels), draw.scale(channels), draw.normal(channels), 1e-5, channels,
        hadamard, draw.scale(1),
    )  # fmt: skip
    y, y_exact = both(gated_rms_norm, args)
    assert_requantised(y, y_exact)


def test_float64_goes_to_the_reference() -> None:
    args = [a.double() if isinstance(a, Tensor) else a for a in ssd_args(Draw(1), 3, codes=False)]
    backend, reasons = ssd.chosen(*args)
    assert backend == "reference"
    assert "torch.float64" in reasons[0]


_DIGEST = """
from hashlib import sha256
from ssmquant.ops.ssd import ssd
from tests.ops.cases import Draw
from tests.ops.test_cpu_scans import ssd_args
y, state = ssd(*ssd_args(Draw(9), 130, state="int8"))
print(sha256(y.numpy().tobytes() + state.numpy().tobytes()).hexdigest())
"""


def test_the_number_of_threads_does_not_matter() -> None:
    results = set()
    for threads in ("1", "3"):
        environment = {**os.environ, "SSMQUANT_THREADS": threads}
        command = [sys.executable, "-c", _DIGEST]
        results.add(
            subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        )
    assert len(results) == 1
