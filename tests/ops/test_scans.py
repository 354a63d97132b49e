"""`ssd` and `selective_scan`: a sequence at once, in pieces and token by token; the accuracy of long chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant.ops.selective_scan import selective_scan
from ssmquant.ops.ssd import ssd
from ssmquant.tolerance import assert_float32, assert_half, assert_requantised

from . import naive
from .cases import SUITES, Args, Case, Draw

SCANS = [
    pytest.param(name, case, id=f"{name}: {case.name}")
    for name in ("ssd", "selective_scan")
    for case in SUITES[name].cases
]
PER_TOKEN = (0, 2, 5, 7)  # places of x, dt, B and C


def tokens(args: Args, start: int, stop: int) -> list[Any]:
    return [a[:, start:stop].contiguous() if place in PER_TOKEN else a for place, a in enumerate(args)]


def decode(run: Callable[..., tuple[Tensor, Tensor]], args: Args, prefill: int) -> tuple[Tensor, Tensor]:
    """Run the first tokens at once and the others one by one, with the tokens since a rounding replayed each time."""
    length, interval = args[0].shape[1], args[-1]
    outputs, state, rounded = [], args[-3], 0
    for start, stop in [(0, prefill), *((t, t + 1) for t in range(prefill, length))]:
        *inputs, _, scale, _ = tokens(args, rounded if interval else start, stop)
        y, state = run(*inputs, state, scale, interval)
        outputs.append(y[:, start - stop :])
        rounded = stop - stop % interval if interval else stop
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize(("name", "case"), SCANS)
def test_prefill_and_steps_are_one_prefill(name: str, case: Case) -> None:
    args = case.args()
    run, length, d_state = SUITES[name].op, args[0].shape[1], args[5].shape[-1]
    y, state = run(*args)
    for prefill in {1, length // 2, length - 1, length} - {0}:
        y_too, state_too = decode(run, args, prefill)
        assert_float32(y_too, y, length * d_state, f"y after a prefill of {prefill}")
        if state.dtype == torch.int8:
            assert_requantised(state_too, state)
        elif state.dtype == torch.float16:
            assert_half(state_too, state)
        else:
            assert_float32(state_too, state, length)


@pytest.mark.parametrize(("name", "case"), SCANS)
def test_rows_of_a_batch_are_independent(name: str, case: Case) -> None:
    args = case.args()
    run, length, d_state = SUITES[name].op, args[0].shape[1], args[5].shape[-1]
    y, state = run(*args)
    for row in range(args[0].shape[0]):
        alone = [
            a[row : row + 1] if place in (*PER_TOKEN, len(args) - 3) else a for place, a in enumerate(args)
        ]
        y_alone, state_alone = run(*alone)
        assert_float32(y_alone, y[row : row + 1], length * d_state)
        assert_float32(read(state_alone), read(state[row : row + 1]), length)


def read(state: Tensor) -> Tensor:
    return state.float()


def test_an_interval_beyond_the_sequence_leaves_the_state() -> None:
    """…and the outputs are those of a float state that starts from the same codes."""
    for name in ("ssd", "selective_scan"):
        (case,) = (c for c in SUITES[name].cases if "every 7, 5 tokens" in c.name)
        *inputs, state, scale, interval = case.args()
        y, after = SUITES[name].op(*inputs, state, scale, interval)
        assert torch.equal(after, state)
        y_float, _ = SUITES[name].op(*inputs, state * scale, None, 0)
        assert torch.equal(y, y_float)


@pytest.mark.parametrize("run", [ssd, selective_scan], ids=["ssd", "selective_scan"])
def test_a_returned_state_keeps_no_more_memory_than_its_own(
    run: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    """Not a view into the states of a whole chunk, which would stay in memory as long as the sequence does."""
    for batch in (1, 2):
        args = list(SUITES[run.name].cases[0].args())
        args = [a[:batch] if place in (*PER_TOKEN, len(args) - 3) else a for place, a in enumerate(args)]
        _, state = run(*args)
        assert state.untyped_storage().nbytes() == state.nbytes


def ssd_args(steps: Tensor, *, headdim: int = 2, d_state: int = 4) -> Args:
    """Return float arguments whose decay exponents ``dt * A`` are given ``[L, H]`` (positive), up to softplus."""
    draw = Draw(5)
    length, heads = steps.shape
    dt = torch.log(torch.expm1(steps.double())).float()[None]
    shared = (1, length, 1, d_state)
    return (
        draw.normal(1, length, heads, headdim), None, dt, None, -torch.ones(heads), draw.normal(*shared), None,
        draw.normal(*shared), None, torch.zeros(heads), torch.zeros(heads), 0.0, float("inf"),
        torch.zeros(1, heads, headdim, d_state), None, 0,
    )  # fmt: skip


def test_strong_decay_does_not_blur_weak_decay_after_it() -> None:
    """A token that forgets nearly all, then tokens that remember: large sums of exponents hide small differences."""
    steps = torch.full((64, 3), 0.01)
    steps[::8] = torch.tensor([5.0, 40.0, 200.0])
    args = ssd_args(steps)
    y, state = ssd(*args)
    y_exact, state_exact = naive.ssd(*args)
    assert_float32(y, y_exact, 64 * 4)
    assert_float32(state, state_exact, 64)


@pytest.mark.parametrize("size", [1e-4, 30.0, 1e4])
def test_tiny_and_huge_steps_are_finite_and_right(size: float) -> None:
    args = ssd_args(torch.full((70, 2), size).clamp(max=80.0))
    args = (*args[:4], args[4] * (size if size > 80 else 1.0), *args[5:])
    y, state = ssd(*args)
    y_exact, state_exact = naive.ssd(*args)
    assert_float32(y, y_exact, 70 * 4)
    assert_float32(state, state_exact, 70)
