"""`causal_conv1d`: a sequence in one go is the sequence in any pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant.ops.causal_conv1d import causal_conv1d
from ssmquant.tolerance import assert_float32

from .cases import SUITES, Case, Draw

WHOLE = [case for case in SUITES["causal_conv1d"].cases if case.args()[0].shape[1] > 1]


def in_pieces(args: tuple[Any, ...], cuts: list[int]) -> tuple[Tensor, Tensor]:
    x, *middle, state, scale_out = args
    outputs = []
    for piece in x.tensor_split(cuts, dim=1):
        y, state = causal_conv1d(piece.contiguous(), *middle, state, scale_out)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_split_at_any_point_and_step_by_step(case: Case) -> None:
    args = case.args()
    length = args[0].shape[1]
    y, state = causal_conv1d(*args)
    for cuts in [*([cut] for cut in range(1, length)), [*range(1, length)]]:
        y_too, state_too = in_pieces(args, cuts)
        assert torch.equal(state, state_too)
        if y.dtype == torch.int8:
            assert torch.equal(y, y_too)
        else:  # the exponential in SiLU may differ in the last bit between a vector's lanes and its rest
            assert_float32(y_too, y, 1)


def test_code_sums_are_exact_integers() -> None:
    """Under scales of one and far from zero SiLU is the identity, so what comes out is the sum itself."""
    x = torch.full((1, 6, 3), 127, dtype=torch.int8)
    weight = torch.full((3, 4), 127, dtype=torch.int8)
    state = torch.zeros(1, 3, 4, dtype=torch.int8)
    one = torch.ones(1)
    y, _ = causal_conv1d(x, one, weight, one, None, state, None)
    assert y[0, :, 0].tolist() == [127 * 127 * taps for taps in (1, 2, 3, 4, 4, 4)]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 9])
def test_the_state_is_the_newest_inputs(length: int) -> None:
    draw = Draw(3)
    x, state = draw.codes(2, length, 5), draw.codes(2, 5, 4)
    _, after = causal_conv1d(x, draw.scale(1), draw.codes(5, 4), draw.scale(1), None, state, None)
    expected = [*state.unbind(2), *x.unbind(1)][-4:]
    assert torch.equal(after, torch.stack(expected, dim=2))


def test_no_token_sees_a_later_one() -> None:
    draw = Draw(4)
    x, rest = draw.normal(1, 8, 3), (None, draw.normal(3, 4), None, None, draw.normal(1, 3, 4), None)
    y, _ = causal_conv1d(x, *rest)
    changed = x.clone()
    changed[:, 5:] += 1
    y_too, _ = causal_conv1d(changed, *rest)
    assert torch.equal(y[:, :5], y_too[:, :5])
    assert not torch.isclose(y[:, 5:], y_too[:, 5:]).any()
