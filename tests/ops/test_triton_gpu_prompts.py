"""On a GPU: what reads prompts, at real sizes against the references, outputs poisoned.

The interpreter knows no tensor cores, no tiles of several warps and none of the assembly in the kernels.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.ops.causal_conv1d import reference as conv_reference
from ssmquant.ops.float_linear import float_linear
from ssmquant.ops.float_linear.reference import float_weight
from ssmquant.ops.gated_rms_norm import reference as norm_reference
from ssmquant.ops.hadamard import reference as hadamard_reference
from ssmquant.ops.int4_progressive_linear.reference import join_grid, largest_multiplier
from ssmquant.ops.int8_linear import reference as linear_reference
from ssmquant.ops.selective_scan import reference as selective_reference
from ssmquant.ops.selective_scan import selective_scan
from ssmquant.ops.ssd import reference as ssd_reference
from ssmquant.ops.ssd import ssd
from ssmquant.tolerance import (
    assert_equal_codes,
    assert_float32,
    assert_requantised,
)

from .cases import Draw, assert_state

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: kernels for prompts at real sizes"
)

DEVICE = "cuda"


def on_device(*tensors: Tensor) -> list[Tensor]:
    return [tensor.to(DEVICE) for tensor in tensors]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("m", "n", "k"), [(2048, 2560, 5120), (512, 2560, 5120), (300, 1000, 384), (129, 36, 128), (40, 34, 1024)]
)
def test_product_is_added_to_a_residual(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    from ssmquant.ops.int8_linear.triton import linear_int8

    draw = Draw(m + n)
    x, x_scale, weight, weight_scale, bias, residual = on_device(
        draw.codes(m, k), draw.scale(1), draw.codes(n, k), draw.scale(n), draw.normal(n), draw.normal(m + 1, n)
    )  # fmt: skip
    residual = residual.to(dtype)
    before = residual.clone()
    linear_int8(x, x_scale, weight, weight_scale, bias, None, residual=residual[:m])
    added = linear_reference.int8_linear(x, x_scale, weight, weight_scale, bias, None)
    assert torch.equal(residual[:m], (before[:m].float() + added).to(dtype))
    assert torch.equal(residual[m], before[m])


@pytest.mark.parametrize(("dtype", "interval"), [(torch.int8, 64), (torch.float16, 16), (torch.float32, 0)])
@pytest.mark.parametrize(
    ("batch", "length", "heads", "groups", "headdim"),
    [
        (1, 2048, 80, 1, 64),
        (16, 512, 80, 1, 64),
        (1, 1000, 128, 8, 64),
        (3, 63, 80, 1, 64),
        (2, 65, 24, 1, 64),
        (2, 130, 16, 2, 32),
        (2, 130, 8, 2, 128),
    ],
)
@pytest.mark.parametrize("fresh", [True, False])
def test_mamba2_scan(
    batch: int, length: int, heads: int, groups: int, headdim: int, dtype: torch.dtype, interval: int, fresh: bool
) -> None:  # fmt: skip
    from ssmquant.ops.ssd.triton import scan_codes, size_of_states

    draw, inner, shared = Draw(heads + length + fresh), heads * headdim, groups * 128
    x, B, C = draw.codes(batch, length, inner + 2 * shared).to(DEVICE).split([inner, shared, shared], dim=-1)
    x, B, C = (
        x.unflatten(-1, (heads, headdim)),
        B.unflatten(-1, (groups, 128)),
        C.unflatten(-1, (groups, 128)),
    )
    dt, x_scale, B_scale, C_scale, dt_scale = on_device(
        draw.codes(batch, length, heads), draw.scale(inner), draw.scale(groups), draw.scale(groups), draw.scale(heads)
    )  # fmt: skip
    A, D, dt_bias = on_device(
        -draw.uniform(heads, low=1.0, high=16.0), draw.normal(heads), draw.uniform(heads, low=-6.0, high=-2.0)
    )
    slots = torch.arange(batch + 1, 1, -1, dtype=torch.int32, device=DEVICE)
    scale = row = size = None
    if dtype == torch.int8:
        state = draw.codes(batch + 2, heads, headdim, 128).to(DEVICE)
        scale, row = on_device(
            draw.scale(groups * 16, 128, absmax=40.0), draw.ids(inner, below=groups * 16).int()
        )
        size = size_of_states(scale)
    else:
        state = draw.normal(batch + 2, heads, headdim, 128).to(DEVICE, dtype)
    before, others = state[slots.long()], state[:2].clone()
    want, after = ssd_reference.ssd(
        x, x_scale, dt, dt_scale, A, B, B_scale.repeat_interleave(128), C, C_scale.repeat_interleave(128), D, dt_bias,
        0.0, float("inf"), torch.zeros_like(before) if fresh else before,
        None if scale is None or row is None else scale[row.long()].view(heads, headdim, 128), interval,
    )  # fmt: skip
    y = torch.full((batch, length, heads, headdim), torch.nan, device=DEVICE)
    scan_codes(
        x, x_scale, dt, dt_scale, A, B, B_scale, C, C_scale, D, dt_bias, 0.0, float("inf"), state, scale, row, size,
        interval, y, state, scale_a_channel=False, slots=slots, fresh=fresh,
    )  # fmt: skip
    assert_float32(y, want, length * 128, "y")
    assert_state(state[slots.long()], after, dtype, length)
    assert torch.equal(state[:2], others)


@pytest.mark.parametrize(("dtype", "interval"), [(torch.int8, 4), (torch.float16, 1), (torch.float32, 0)])
@pytest.mark.parametrize(("batch", "length", "channels"), [(1, 257, 5120), (2, 100, 1536), (3, 5, 100)])
def test_mamba1_scan(batch: int, length: int, channels: int, dtype: torch.dtype, interval: int) -> None:
    from ssmquant.ops.selective_scan.triton import scan_into

    draw = Draw(channels + length)
    x, dt, selected = on_device(
        draw.codes(batch, length, channels),
        draw.codes(batch, length, channels),
        draw.codes(batch, length, 192),
    )
    B, C = selected[:, :, 160:].split(16, dim=-1)
    x_scale, dt_scale, B_scale, C_scale = on_device(
        draw.scale(channels), draw.scale(channels), draw.scale(1), draw.scale(1)
    )
    A, D, dt_bias = on_device(
        -draw.uniform(channels, 16, low=0.5, high=16.0), draw.normal(channels),
        draw.uniform(channels, low=-6.0, high=-2.0),
    )  # fmt: skip
    scale = draw.scale(channels, 16, absmax=40.0).to(DEVICE) if dtype == torch.int8 else None
    row = torch.arange(channels, dtype=torch.int32, device=DEVICE) if dtype == torch.int8 else None

    def scan(tokens: slice, state: Tensor) -> Tensor:
        """Run the kernel over some tokens, which moves the state on, and return y."""
        y = torch.full((batch, len(range(length)[tokens]), channels), torch.nan, device=DEVICE)
        scan_into(
            x[:, tokens], x_scale, dt[:, tokens], dt_scale, A, B[:, tokens], B_scale, C[:, tokens], C_scale, D, dt_bias,
            state, scale, row, interval, y, state, fresh=not tokens.start,
        )  # fmt: skip
        return y

    state = torch.zeros(batch, channels, 16, dtype=dtype, device=DEVICE)
    y = scan(slice(None), state)
    # A state that lies between two codes may be rounded to the other one, which is no error of the tokens after it: so
    # the reference goes from one rounding to the next, each time from the state as it was rounded here.
    step, piece, pieces = interval or length, torch.zeros_like(state), []
    for start in range(0, length, step):
        tokens = slice(start, start + step)
        want, after = selective_reference.selective_scan(
            x[:, tokens], x_scale, dt[:, tokens], dt_scale, A, B[:, tokens], B_scale, C[:, tokens], C_scale, D, dt_bias,
            piece, scale, interval,
        )  # fmt: skip
        pieces.append(scan(tokens, piece))
        assert_float32(pieces[-1], want, step * 16, f"y from token {start} on")
        assert_state(piece, after, dtype, step)
    assert torch.equal(y, torch.cat(pieces, dim=1))
    assert torch.equal(state, piece)


@pytest.mark.parametrize(
    ("batch", "length", "channels"),
    [(1, 2048, 5376), (3, 513, 10240), (2, 33, 5376), (2, 3, 100), (2, 70, 36)],
)
def test_convolution(batch: int, length: int, channels: int) -> None:
    from ssmquant.ops.causal_conv1d.triton import convolve_into_ring

    draw, one = Draw(channels + length), torch.ones(1, device=DEVICE)
    x, weight, x_scale, bias, scale_out = on_device(
        draw.codes(batch, length, channels + 64), draw.codes(channels, 4), 0.01 * draw.scale(channels),
        0.1 * draw.normal(channels), draw.scale(channels, absmax=3.0),
    )  # fmt: skip
    x = x[:, :, 64:]
    slots = torch.arange(batch - 1, -1, -1, dtype=torch.int32, device=DEVICE)
    ring = torch.full((batch, 4, channels), 99, dtype=torch.int8, device=DEVICE)
    history = torch.zeros(batch, channels, 4, dtype=torch.int8, device=DEVICE)
    for start in (0, length):  # a prompt, and the same tokens after it
        want, history = conv_reference.causal_conv1d(x, x_scale, weight, one, bias, history, scale_out)
        out = torch.full((batch, length, channels), -128, dtype=torch.int8, device=DEVICE)
        positions = torch.full((batch,), start, dtype=torch.int32, device=DEVICE)
        old = ring.clone() if start else ring
        convolve_into_ring(x, x_scale, weight, one, bias, old, ring, slots, positions, scale_out, out)
        assert_requantised(out, want)
        seen = min(start + length, 4)
        newest = [ring[slots.long(), (start + length - seen + i) % 4] for i in range(seen)]
        assert_equal_codes(torch.stack(newest, dim=-1), history[:, :, 4 - seen :], "ring")


@pytest.mark.parametrize(
    ("rows", "channels", "groups"),
    [
        (2048, 5120, 1),
        (1999, 8192, 8),
        (519, 1536, 1),
        (600, 4096, 1),
        (514, 16384, 1),
        (130, 5120, 1),
        (4, 8192, 8),
    ],
)
def test_gated_norm_and_transform(rows: int, channels: int, groups: int) -> None:
    from ssmquant.ops.hadamard.triton import emit

    draw = Draw(rows + channels)
    y, z, z_scale, gain, scale_out = on_device(
        draw.normal(rows, channels) * draw.uniform(channels, low=0.1, high=5.0), draw.codes(rows, channels + 64),
        draw.scale(channels, absmax=8.0), draw.normal(channels), draw.scale(1, absmax=4.0),
    )  # fmt: skip
    norm = (y, z[:, :channels], z_scale, gain, 1e-5, channels // groups, True)
    floats = torch.full((rows, channels), torch.nan, device=DEVICE)
    codes = torch.full((rows, channels), -128, dtype=torch.int8, device=DEVICE)
    emit(*norm, None, floats)
    emit(*norm, scale_out, codes)
    assert_float32(floats, norm_reference.gated_rms_norm(*norm, None), channels, "floats")
    assert_equal_codes(codes, numerics.quantize(floats, scale_out))
    plain = emit(y, None, None, None, 0.0, channels, True, None)
    assert_float32(plain, hadamard_reference.hadamard(y), channels, "the transform alone")


@pytest.mark.parametrize("m", [1, 3, 16, 40, 130])
@pytest.mark.parametrize(("n", "k"), [(3352, 768), (768, 1536), (10576, 2560), (2560, 5120)])
@pytest.mark.parametrize("form", ["float16", "int8", "int4", "zero points", "grid"])
def test_float_product(m: int, n: int, k: int, form: str) -> None:
    draw, groups = Draw(m + n), k // (32 if form == "grid" else 128)
    scale = zero_point = grid = None
    if form == "float16":
        weight = draw.normal(n, k).half()
    elif form == "int8":
        weight, scale = draw.codes(n, k), draw.scale(n)
    else:
        weight = draw.ids(n, k // 2, below=256).to(torch.uint8)
        scale = draw.scale(n) if form == "grid" else draw.scale(n, groups)
        zeros = (draw.ids(n, groups, below=16) - 8).to(torch.int8)
        zero_point = zeros if form == "zero points" else None
        if form == "grid":
            multiplier = (1 + draw.ids(n, groups, below=15)).minimum(largest_multiplier(zeros))
            grid = join_grid(multiplier.to(torch.uint8), zeros)
    args = [
        None if tensor is None else tensor.to(DEVICE)
        for tensor in (draw.normal(m, k), weight, scale, zero_point, grid, draw.normal(n), None)
    ]
    assert float_linear.chosen(*args)[0] == "triton"
    x, weight, bias = args[0], args[1], args[5]
    exact = x.double() @ float_weight(weight, *args[2:5]).double().T + bias.double()
    assert_float32(float_linear(*args), exact, k)


@pytest.mark.parametrize("codes", [False, True])
@pytest.mark.parametrize(
    ("batch", "length", "heads", "groups", "headdim"),
    [(1, 2048, 80, 1, 64), (4, 300, 24, 1, 64), (2, 130, 16, 2, 32), (1, 77, 8, 2, 128), (3, 1, 80, 1, 64)],
)
def test_mamba2_scan_of_floats(
    batch: int, length: int, heads: int, groups: int, headdim: int, codes: bool
) -> None:
    """Parts of wider rows, x among codes or not."""
    draw, inner, shared = Draw(heads + length + codes), heads * headdim, groups * 128
    B, C = draw.normal(batch, length, 2 * shared + 8).to(DEVICE)[..., 8:].split([shared, shared], dim=-1)
    x, dt, A, D, dt_bias, state, x_scale = on_device(
        draw.codes(batch, length, inner) if codes else draw.normal(batch, length, inner),
        draw.normal(batch, length, heads), -draw.uniform(heads, low=1.0, high=16.0), draw.normal(heads),
        draw.uniform(heads, low=-6.0, high=-2.0), draw.normal(batch, heads, headdim, 128), draw.scale(inner),
    )  # fmt: skip
    args = (
        x.unflatten(-1, (heads, headdim)), x_scale if codes else None, dt, None, A, B.unflatten(-1, (groups, 128)),
        None, C.unflatten(-1, (groups, 128)), None, D, dt_bias, 0.0, float("inf"), state, None, 0,
    )  # fmt: skip
    assert ssd.chosen(*args)[0] == "triton"
    want, after = ssd_reference.ssd(*args)
    y, state = ssd(*args)
    assert_float32(y, want, length * 128, "y")
    assert_float32(state, after, length, "state")


@pytest.mark.parametrize(("batch", "length", "channels"), [(1, 257, 5120), (2, 100, 1536), (3, 1, 100)])
def test_mamba1_scan_of_floats(batch: int, length: int, channels: int) -> None:
    draw = Draw(channels + length)
    x, dt, selected, A, D, dt_bias, state = on_device(
        draw.normal(batch, length, channels), draw.normal(batch, length, channels), draw.normal(batch, length, 192),
        -draw.uniform(channels, 16, low=0.5, high=16.0), draw.normal(channels),
        draw.uniform(channels, low=-6.0, high=-2.0), draw.normal(batch, channels, 16),
    )  # fmt: skip
    B, C = selected[:, :, 160:].split(16, dim=-1)
    args = (x, None, dt, None, A, B, None, C, None, D, dt_bias, state, None, 0)
    assert selective_scan.chosen(*args)[0] == "triton"
    want, after = selective_reference.selective_scan(*args)
    y, state = selective_scan(*args)
    assert_float32(y, want, length * 16, "y")
    assert_float32(state, after, length, "state")
