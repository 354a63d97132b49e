"""Where a sequence is cut and where its state is rounded."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmquant.ops import recurrent_state
from ssmquant.ops.recurrent_state import segments


@given(length=st.integers(1, 400), interval=st.integers(0, 150), chunk=st.integers(1, 80))
def test_segments(length: int, interval: int, chunk: int) -> None:
    parts = segments(length, interval, chunk)
    tokens = [t for part, _ in parts for t in range(part.start, part.stop)]
    assert tokens == list(range(length))  # everything once, in order
    assert all(0 < part.stop - part.start <= chunk for part, _ in parts)
    rounded = [part.stop for part, rounds in parts if rounds]
    assert rounded == (list(range(interval, length + 1, interval)) if interval else [])


@given(interval=st.integers(1, 64), whole=st.integers(0, 3), tail=st.integers(1, 64))
def test_replayed_tokens_are_cut_as_in_one_go(interval: int, whole: int, tail: int) -> None:
    """Cuts count from a rounding (up to the chunk's length), so the tokens after one may be replayed alone."""
    start = interval * whole
    in_one_go = [
        (p.start - start, p.stop - start) for p, _ in segments(start + tail, interval, 64) if p.start >= start
    ]
    alone = [(p.start, p.stop) for p, _ in segments(tail, interval, 64)]
    assert in_one_go == alone
    assert all(a[1] == b[0] for a, b in pairwise(alone))


def test_a_float_state_is_read_and_written_as_it_is() -> None:
    for dtype in (torch.float32, torch.float64):
        state = torch.randn(2, 3, dtype=dtype)
        assert recurrent_state.read(state, None) is state
        assert torch.equal(recurrent_state.write(state, None, dtype), state)


def test_a_half_state_is_rounded_to_nearest() -> None:
    state = torch.tensor([1.0 + 2**-11, 1.0 + 3 * 2**-11, 3.1])
    written = recurrent_state.write(state, None, torch.float16)
    assert written.tolist() == [1.0, 1.0 + 2**-9, 3.099609375]
    assert recurrent_state.read(written, None).dtype == torch.float32


@pytest.mark.parametrize("scale", [torch.tensor([[0.5]]), torch.tensor([[0.5], [0.25]])])
def test_an_int8_state_has_its_scales(scale: torch.Tensor) -> None:
    state = torch.tensor([[[1.0, -2.25], [0.125, 100.0]]])
    written = recurrent_state.write(state, scale, torch.int8)
    assert written.dtype == torch.int8
    assert written[0, 0].tolist() == [2, -4]
    assert torch.equal(recurrent_state.read(written, scale), written * scale)
