"""The GPU's scans and what goes with them, in Triton's interpreter: every case of the ops, and steps in slots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from itertools import count, product

import pytest
import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.ops.causal_conv1d.reference import causal_conv1d
from ssmquant.ops.registry import Kernel
from ssmquant.tolerance import assert_equal_codes, assert_float32

from . import naive
from .cases import SUITES, Args, Case, Draw, Suite, assert_state
from .interpreter import needs_interpreter

pytestmark = needs_interpreter

NAMES = ("causal_conv1d", "ssd", "selective_scan", "rms_norm", "gated_rms_norm", "gate", "hadamard")
CASES = [
    pytest.param(SUITES[name], case, id=f"{name}: {case.name}")
    for name in NAMES
    for case in SUITES[name].cases
]
WITH_SCALE_OUT = [p for p in CASES if p.values[0].scale_out]


def kernel_of(suite: Suite, args: Args | None = None) -> Kernel | None:
    """Return the first kernel that takes the arguments, or the first of all."""
    for module in ("triton", "triton_float"):
        if find_spec(f"ssmquant.ops.{suite.op.name}.{module}"):
            import_module(f"ssmquant.ops.{suite.op.name}.{module}")
    kernels = (kernel for kernel in suite.op.kernels if kernel.backend == "triton")
    return next((kernel for kernel in kernels if args is None or kernel.supports(*args) is None), None)


@pytest.mark.parametrize(("suite", "case"), CASES)
def test_case(suite: Suite, case: Case) -> None:
    args = case.args()
    kernel = kernel_of(suite, args)
    if kernel is not None:
        suite.compare(args, kernel.run(*args))
    else:  # only one scan declines, and only floats under a reduced state
        assert suite.op.name == "ssd"
        assert args[1] is None and args[-1] > 0


@pytest.mark.parametrize("coded", list(product((False, True), repeat=4)), ids=str)
@pytest.mark.parametrize("length", [1, 70])
@pytest.mark.parametrize("name", ["ssd", "selective_scan"])
def test_codes_and_floats_mixed(name: str, length: int, coded: tuple[bool, ...]) -> None:
    """Any of x, dt, B and C as codes, all of them parts of wider rows, as the layers hand them on."""
    draw, batch = Draw(length + sum(coded)), 2
    heads, headdim, groups, d_state = (4, 5, 2, 6) if name == "ssd" else (7, 1, 1, 6)
    args: list[Tensor | None] = []
    for code, width in zip(coded, (heads * headdim, heads, groups * d_state, groups * d_state), strict=True):
        wide = (draw.codes if code else draw.normal)(batch, length, width + 3)
        args += [wide[..., 2:-1], draw.scale(width) if code else None]
    x, x_scale, dt, dt_scale, B, B_scale, C, C_scale = args
    assert x is not None and B is not None and C is not None
    vectors = draw.normal(heads), draw.uniform(heads, low=-4.0, high=1.0)
    if name == "ssd":
        call: Args = (
            x.unflatten(-1, (heads, headdim)), x_scale, dt, dt_scale, -draw.uniform(heads, low=0.1, high=4.0),
            B.unflatten(-1, (groups, d_state)), B_scale, C.unflatten(-1, (groups, d_state)), C_scale, *vectors,
            0.01, 2.0, draw.normal(batch, heads, headdim, d_state), None, 0,
        )  # fmt: skip
    else:
        call = (
            x, x_scale, dt, dt_scale, -draw.uniform(heads, d_state, low=0.1, high=4.0), B, B_scale, C, C_scale,
            *vectors, draw.normal(batch, heads, d_state), None, 0,
        )  # fmt: skip
    kernel = kernel_of(SUITES[name], call)
    assert kernel is not None
    SUITES[name].compare(call, kernel.run(*call))


@pytest.mark.parametrize(("suite", "case"), WITH_SCALE_OUT)
def test_codes_out_are_the_quantised_floats(suite: Suite, case: Case) -> None:
    kernel = kernel_of(suite)
    assert kernel is not None
    *args, _scale_out = case.args()
    floats = kernel.run(*args, None)
    floats = floats if isinstance(floats, Tensor) else floats[0]
    for scale in (torch.tensor([0.037]), torch.linspace(0.01, 0.1, floats.shape[-1])):
        codes = kernel.run(*args, scale)
        codes = codes if isinstance(codes, Tensor) else codes[0]
        assert torch.equal(codes, numerics.quantize(floats, scale))


@pytest.mark.parametrize(
    ("suite", "case"), [p for p in CASES if p.values[0].op.name in ("gated_rms_norm", "gate", "hadamard")]
)
def test_many_rows(suite: Suite, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    from ssmquant.ops.hadamard import triton

    monkeypatch.setattr(triton, "_MANY_ROWS", 0)
    monkeypatch.setattr(triton, "_MANY", (4, 2))  # two programs, so that each goes from row to row
    monkeypatch.setattr(triton, "_MANY_IN_PARTS", (2, 2))
    args = case.args()
    kernel = kernel_of(suite)
    assert kernel is not None
    suite.compare(args, kernel.run(*args))


# Codes under reduced states: the suites have these cases with floats


def with_codes(case: Case, name: str) -> Iterator[Args]:
    """Yield one case's arguments with its float inputs replaced by codes, once settled."""
    scan = naive.ssd_with_margin if name == "ssd" else naive.selective_scan_with_margin
    for seed in count(1):
        draw = Draw(seed)
        args = list(case.make(draw))
        for place in (0, 2, 5, 7):
            if args[place + 1] is None:
                args[place], args[place + 1] = draw.codes(*args[place].shape), draw.scale(1)
        if scan(*args)[2] > 2e-3:
            yield tuple(args)
            return


REDUCED = [
    pytest.param(name, case, id=f"{name}: {case.name}")
    for name in ("ssd", "selective_scan")
    for case in SUITES[name].cases
    if " state every " in case.name
]


@pytest.mark.parametrize(("name", "case"), REDUCED)
def test_reduced_states_of_codes(name: str, case: Case) -> None:
    (args,) = with_codes(case, name)
    suite = SUITES[name]
    kernel = kernel_of(suite, args)
    assert kernel is not None
    suite.compare(args, kernel.run(*args))


# Steps in slots, against the whole sequence at once


@dataclass(frozen=True)
class Stream:
    """What comes out of in_proj for a few sequences, and what the reference makes of all their tokens at once."""

    projected: Tensor  # int8 [B, L, d_in_proj]
    y: Tensor  # float [B, L, H, P]
    state: Tensor  # after the last whole interval


STATES = [(0, 1), (4, 1), (4, 6), (-4, 1)]  # interval (negative: float16), rows of the state's scale


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(("interval", "rows"), STATES)
def test_mamba2_steps_are_the_scan(
    interval: int, rows: int, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one launch, as few rows are, and in two."""
    from ssmquant.ops.ssd import triton_step
    from ssmquant.ops.ssd.triton import size_of_states
    from ssmquant.ops.ssd.triton_step import Constants, Memory, Sizes, round_states, step

    if not alone:
        monkeypatch.setattr(triton_step, "_ALONE", 0)
    draw = Draw(7 + interval + rows)
    half, interval = interval < 0, abs(interval)
    sizes = Sizes(nheads=4, headdim=5, ngroups=2, d_state=6, d_conv=4, interval=interval)
    dtype = torch.float32 if not interval else torch.float16 if half else torch.int8
    batch, length, inner, width = 3, 11, sizes.d_inner, sizes.conv_dim
    projected = draw.codes(batch, length, inner + width + sizes.nheads)
    x_in, weight_scale = draw.scale(width), draw.scale(width)
    weight, bias, out = draw.codes(width, 4), draw.normal(width), draw.scale(width, absmax=12.0)
    for start, size in ((inner, 6), (inner + 6, 6), (inner + 12, 6), (inner + 18, 6)):
        out[start : start + size] = out[start]  # B and C have one scale a group
    dt_scale, dt_bias = draw.scale(sizes.nheads), draw.uniform(4, low=-3.0, high=1.0)
    A, D = -draw.uniform(4, low=0.1, high=2.0), draw.normal(4)
    scale = draw.scale(rows, 6, absmax=40.0)
    choice = draw.ids(inner, below=4).int()
    of_head = draw.ids(sizes.nheads, 4, below=max(rows // 2, 1)).int()
    if rows > 1:
        of_head[2:] += rows // 2  # the rows of the second group
    row = of_head.gather(1, choice.view(4, 5).long()).flatten()

    conv = causal_conv1d(
        projected[:, :, inner : inner + width], x_in, weight, weight_scale, bias,
        torch.zeros(batch, width, 4, dtype=torch.int8), out,
    )[0]  # fmt: skip
    x, B, C = conv.split([inner, 12, 12], dim=-1)
    y, after, _ = naive.ssd_with_margin(
        x.unflatten(-1, (4, 5)), out[:inner], projected[:, :, -4:], dt_scale, A, B.unflatten(-1, (2, 6)),
        out[inner : inner + 12], C.unflatten(-1, (2, 6)), out[inner + 12 :], D, dt_bias, 0.001, 0.5,
        torch.zeros(batch, 4, 5, 6, dtype=dtype), scale[row.long()].view(4, 5, 6) if dtype == torch.int8 else None,
        interval,
    )  # fmt: skip

    constants = Constants(
        weight, x_in * weight_scale, bias, 1.0 / out, out[:inner].contiguous(),
        out[inner : inner + 12 : 6].contiguous(), out[inner + 12 :: 6].contiguous(), dt_scale, dt_bias, A,
        D, scale, of_head, choice, row, size_of_states(scale),
    )  # fmt: skip
    slots, waiting = 5, max(interval, 1)
    memory = Memory(
        torch.full((slots, 4, width), 99, dtype=torch.int8), torch.zeros(slots, 4, 5, 6, dtype=dtype),
        torch.full((slots, 1, inner, 16), 99, dtype=torch.int8),
        torch.full((slots, waiting, 12), 99, dtype=torch.int8),
        torch.full((slots, waiting, 4), torch.nan),
    )  # fmt: skip
    positions = torch.zeros(slots, dtype=torch.int32)
    untouched = memory.ring[1].clone()
    limit = (0.001, 0.5)
    found = torch.full((batch, length, inner), torch.nan)
    place = torch.tensor([4, 0, 2], dtype=torch.int32)
    # Row 1 begins three tokens later than the others, so that rows of different positions are stepped together.
    for time in range(length + 3):
        at = [time, time - 3, time]
        here = [row for row in range(batch) if 0 <= at[row] < length]
        where = place[here].contiguous()
        tokens = torch.stack([projected[row, at[row]] for row in here])
        result = torch.empty(len(here), inner)
        step(tokens, where, positions, constants, memory, sizes, limit, result)
        for index, r in enumerate(here):
            found[r, at[r]] = result[index]
        positions[where.long()] += 1
        full = torch.tensor(
            [s for s in where.tolist() if interval and positions[s] % interval == 0], dtype=torch.int32
        )
        if len(full):
            layered = [
                type(part)(**{name: tensor[None] for name, tensor in vars(part).items()})
                for part in (constants, memory)
            ]
            round_states(full, *layered, sizes)
    assert_float32(found, y.flatten(-2), length * 6, "y")
    assert_state(memory.state[place.long()], after, dtype, length)
    assert_equal_codes(memory.ring[1], untouched, "the ring of a slot that no row names")


@pytest.mark.parametrize(("interval", "rows"), [(0, 1), (1, 1), (3, 1), (3, 7), (-1, 1), (-3, 1)])
def test_mamba1_steps_are_the_scan(interval: int, rows: int) -> None:
    from ssmquant.ops.selective_scan.triton_step import step

    draw = Draw(70 + interval + rows)
    half, interval = interval < 0, abs(interval)
    dtype = torch.float32 if not interval else torch.float16 if half else torch.int8
    batch, length, channels, d_state, slots = 2, 7, 37, 5, 4
    x, dt = draw.codes(batch, length, channels), draw.codes(batch, length, channels)
    projected = draw.codes(batch, length, 3 + 2 * d_state)
    B, C = projected[..., 3 : 3 + d_state], projected[..., 3 + d_state :]
    x_scale, dt_scale = draw.scale(channels), draw.scale(channels)
    B_scale, C_scale = draw.scale(1), draw.scale(1)
    A, D = -draw.uniform(channels, d_state, low=0.1, high=2.0), draw.normal(channels)
    dt_bias = draw.uniform(channels, low=-3.0, high=1.0)
    scale, row = draw.scale(rows, d_state, absmax=20.0), draw.ids(channels, below=rows).int()
    coded = dtype == torch.int8
    y, after, _ = naive.selective_scan_with_margin(
        x, x_scale, dt, dt_scale, A, B, B_scale, C, C_scale, D, dt_bias,
        torch.zeros(batch, channels, d_state, dtype=dtype), scale[row.long()] if coded else None, interval,
    )  # fmt: skip
    state, positions = (
        torch.zeros(slots, channels, d_state, dtype=dtype),
        torch.zeros(slots, dtype=torch.int32),
    )
    waiting = [
        torch.full((slots, max(interval, 1), width), 99, dtype=torch.int8)
        for width in (channels, channels, d_state)
    ]
    where = torch.tensor([3, 1], dtype=torch.int32)
    found = torch.empty(batch, length, channels)
    for time in range(length):
        result = torch.empty(batch, channels)
        step(
            x[:, time].contiguous(), x_scale, dt[:, time].contiguous(), dt_scale, A, B[:, time], B_scale, C[:, time],
            C_scale, D, dt_bias, where, positions, state, scale if coded else None, row if coded else None,
            *waiting, interval, result,
        )  # fmt: skip
        found[:, time] = result
        positions[where.long()] += 1
    assert_float32(found, y, length * d_state, "y")
    assert_state(state[where.long()], after, dtype, length)
