"""How a recurrent state is kept between tokens: float32 or float64 as it is, or rounded to float16 or int8 codes.

A reduced state is rounded only at every ``interval``-th token of the sequence; in between, the tokens since the last
rounding are kept beside it (as the codes they are) and replayed. So the state is rounded ``1 / interval``
times as often,
small updates add up before they meet the rounding (int8 codes of one step would lose them), and a sequence gives
the same result whether its tokens come at once or one by one.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import InputError
from ssmquant.ops.checks import expect_dtype

__all__ = ["check_state", "read", "segments", "write"]


def check_state(
    op: str, state: Tensor, state_scale: Tensor | None, interval: int, compute: torch.dtype
) -> None:
    """Raise unless state, scale and interval fit each other; ``compute`` is the dtype of a state kept as it is."""
    expect_dtype(op, "state", state, compute, torch.float16, torch.int8)
    if (state.dtype == torch.int8) != (state_scale is not None):
        raise InputError(
            f"{op}: an int8 state has a scale and no other has; got {state.dtype} and {state_scale is not None}"
        )
    if state_scale is not None:
        expect_dtype(op, "state_scale", state_scale, torch.float32)
        shape = state.shape[1:]
        sizes = zip(reversed(state_scale.shape), reversed(shape), strict=False)
        if state_scale.dim() > len(shape) or any(size not in (1, whole) for size, whole in sizes):
            raise InputError(
                f"{op}: state_scale must be broadcastable to {list(shape)}, got {list(state_scale.shape)}"
            )
    reduced = state.dtype in (torch.float16, torch.int8)
    if interval < 0 or reduced != (interval > 0):
        raise InputError(
            f"{op}: interval is positive for a reduced state and 0 else; got {interval} for {state.dtype}"
        )


def read(state: Tensor, state_scale: Tensor | None) -> Tensor:
    """Return the state in float32 (float64 stays)."""
    if state_scale is not None:
        return numerics.dequantize(state, state_scale)
    return state.float() if state.dtype == torch.float16 else state


def write(state: Tensor, state_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return a computed state as it is kept: int8 codes under its scale, or the float type."""
    return state.to(dtype) if state_scale is None else numerics.quantize(state, state_scale)


def segments(length: int, interval: int, chunk: int) -> list[tuple[slice, bool]]:
    """Cut a sequence for a chunked scan.

    Args:
        length: tokens.
        interval: tokens between two roundings of the state; 0 for none.
        chunk: longest piece to compute at once.

    Returns:
        slices in order, each with whether the state is rounded after it.
    """
    size = min(interval, chunk) if interval else chunk
    cuts = set(range(0, length, size)) | set(range(0, length, interval) if interval else ()) | {length}
    edges = sorted(cuts)
    return [(slice(a, b), bool(interval) and b % interval == 0) for a, b in pairwise(edges)]
