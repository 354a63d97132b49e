"""The place of the recurrent state, and the bookkeeping of what a mixer remembers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssmquant.errors import RecipeError
from ssmquant.modules.activation import QTensor
from ssmquant.modules.mixer import StateSite
from ssmquant.modules.state import MixerState, join_tokens
from ssmquant.scheme import FLOAT32, Granularity, TensorScheme

from .build import HALF_STATE, PIECEWISE, ROW, TENSOR

MAMBA1 = {"d_inner": 6, "d_state": 3}
MAMBA2 = {"ngroups": 2, "heads": 3, "headdim": 2, "d_state": 5}


@pytest.mark.parametrize(
    ("dims", "scheme", "stored", "state", "broadcast"),
    [
        (MAMBA1, TENSOR, (1, 1), (6, 3), (1, 1)),
        (MAMBA1, ROW, (6, 1), (6, 3), (6, 1)),
        (MAMBA2, TENSOR, (1, 1), (6, 2, 5), (1, 1, 1)),
        (MAMBA2, ROW, (12, 1), (6, 2, 5), (6, 2, 1)),
        (MAMBA2, PIECEWISE, (8, 5), (6, 2, 5), (6, 2, 5)),
    ],
)
def test_scales_of_a_state(
    dims: dict[str, int], scheme: TensorScheme, stored: tuple[int, ...], state: tuple[int, ...],
    broadcast: tuple[int, ...],
) -> None:  # fmt: skip
    site = StateSite(dims, scheme.model_copy(update={"interval": 4}))
    site.scale.copy_(torch.arange(1.0, site.scale.numel() + 1).view(site.scale.shape))
    assert site.scale.shape == stored
    assert (site.dtype, site.interval) == (torch.int8, 4)
    if "group" in dict(site.named_buffers()):
        site.group.copy_(torch.tensor([3, 0, 0, 5, 7, 1, 2, 4, 6, 6, 5, 1]))
    scale = site.static_scale(state)
    assert scale is not None
    assert scale.shape == broadcast
    for row in range(site.rows):
        group = int(site.group[row]) if scheme is PIECEWISE else min(row, stored[0] - 1)
        assert torch.equal(
            scale.expand(state).reshape(-1, state[-1])[row], site.scale[group].expand(state[-1])
        )


def test_float_states_have_no_scales() -> None:
    for scheme, dtype, interval in ((FLOAT32, torch.float32, 0), (HALF_STATE, torch.float16, 4)):
        site = StateSite(MAMBA2, scheme)
        assert (site.dtype, site.interval) == (dtype, interval)
        assert site.static_scale((6, 2, 5)) is None
        assert not list(site.buffers())


@pytest.mark.parametrize(
    ("dims", "scheme"),
    [
        (MAMBA1, PIECEWISE),
        (MAMBA2, TensorScheme(bits=4)),
        (MAMBA2, TensorScheme(kind="lut", bits=4, granularity=Granularity.PER_CHANNEL)),
        (MAMBA2, TensorScheme(symmetric=False)),
        (MAMBA2, TensorScheme(granularity=Granularity.PER_TOKEN)),
        (MAMBA2, TensorScheme(granularity=Granularity.PER_TOKEN, dynamic=True)),
        (MAMBA2, TensorScheme(granularity=Granularity.PER_STATE_GROUP)),
        (MAMBA2, TensorScheme(granularity=Granularity.PER_GROUP, group_size=5)),
    ],
)
def test_schemes_without_a_meaning_are_refused(dims: dict[str, int], scheme: TensorScheme) -> None:
    with pytest.raises(RecipeError, match=f"scheme '{scheme.short()}' has no meaning for a recurrent state"):
        StateSite(dims, scheme)


def numbers(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel()).view(shape)


def test_rows_take_tokens_and_their_scales_along() -> None:
    codes = numbers(3, 2, 4).to(torch.int8)
    pending = (
        QTensor(codes, torch.tensor([0.5])),
        QTensor(codes, numbers(3, 2, 1).float()),
        QTensor(codes.float(), None),
    )
    state = MixerState(numbers(3, 4, 2), numbers(3, 4, 5), pending)
    part = state.rows(torch.tensor([2, 0]))
    assert torch.equal(part.conv, state.conv[[2, 0]])
    assert torch.equal(part.ssm, state.ssm[[2, 0]])
    for got, whole in zip(part.pending, pending, strict=True):
        assert torch.equal(got.data, whole.data[[2, 0]])
    assert part.pending[0].scale is pending[0].scale
    assert torch.equal(part.pending[1].dequantize(), pending[1].dequantize()[[2, 0]])


def test_nbytes_counts_the_scales_that_tokens_have() -> None:
    codes = torch.zeros(3, 2, 4, dtype=torch.int8)
    conv, ssm = torch.zeros(3, 4, 2, dtype=torch.int8), torch.zeros(3, 4, 5, dtype=torch.float16)
    assert MixerState(conv, ssm).nbytes == 24 + 120
    assert MixerState(conv, ssm, (QTensor(codes, torch.ones(4)),)).nbytes == 24 + 120 + 24
    assert MixerState(conv, ssm, (QTensor(codes, torch.ones(3, 2, 1)),)).nbytes == 24 + 120 + 24 + 24


def test_a_fork_is_a_state_of_its_own() -> None:
    state = MixerState(numbers(1, 2, 2), numbers(1, 2, 3))
    fork = state.fork()
    fork.conv, fork.ssm, fork.pending = fork.conv + 1, fork.ssm + 1, (QTensor(numbers(1, 1, 1), None),)
    assert torch.equal(state.conv, numbers(1, 2, 2))
    assert torch.equal(state.ssm, numbers(1, 2, 3))
    assert state.pending == ()


def test_tokens_are_joined_in_order() -> None:
    old, new = numbers(2, 3, 4).to(torch.int8), (numbers(2, 2, 4) + 50).to(torch.int8)
    shared, of_old, of_new = torch.tensor([0.5]), torch.rand(2, 3, 1), torch.rand(2, 2, 1)
    before = (QTensor(old, shared), QTensor(old, of_old), QTensor(old.float(), None))
    now = (QTensor(new, shared), QTensor(new, of_new), QTensor(new.float(), None))
    together = join_tokens(before, now)
    for got, first, second in zip(together, before, now, strict=True):
        assert torch.equal(got.data, torch.cat([first.data, second.data], dim=1))
        assert torch.equal(got.dequantize(), torch.cat([first.dequantize(), second.dequantize()], dim=1))
    assert join_tokens((), now) == now
