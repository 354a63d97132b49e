"""What `mixed_linear` promises beyond its tolerance class: every bit, and which channel has which precision."""

from __future__ import annotations

import pytest
import torch

from ssmquant.ops.int4_linear.packing import pack_int4
from ssmquant.ops.mixed_linear import mixed_linear
from ssmquant.ops.mixed_linear import reference as implementation

from . import naive
from .cases import SUITES, Args, Case

CASES = SUITES["mixed_linear"].cases
(WIDE,) = (case for case in CASES if case.name == "groups of 128")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_that_of_the_written_order_of_roundings(case: Case) -> None:
    args = case.args()
    assert torch.equal(mixed_linear(*args), naive.mixed_linear(*args))


def test_the_order_of_the_groups_is_seen_in_the_last_bit() -> None:
    """Otherwise the test above would not hold the sum to its order."""
    args = WIDE.args()
    assert torch.equal(torch.sort(args[1]).values, torch.arange(1408, dtype=torch.int32))
    reversed_groups = groups_reversed(args)
    assert not torch.equal(mixed_linear(*reversed_groups), mixed_linear(*args))
    SUITES["mixed_linear"].compare(args, mixed_linear(*reversed_groups))  # only in the last bits


def groups_reversed(args: Args) -> Args:
    """Return the same layer with its ten groups stored in reverse."""
    x, order, packed, scale, *rest = args
    ordinary = order[:1280].view(10, 128).flip(0).flatten()
    reverse = packed.view(-1, 10, 64).flip(1).flatten(1)
    return (x, torch.cat([ordinary, order[1280:]]), reverse, scale.flip(1).contiguous(), *rest)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        # Group: 7 and -3.5 in steps of 1 are the codes 7 and -4; (7 * 3 + -4 * -2) / 2. Outlier: 127 * 10 / 4.
        (1.0, 14.5 + 317.5),
        # Steps of 1/2: the codes 7 (clamped) and -7; (7 * 3 + -7 * -2) / 2 / 2. The outlier is not clipped.
        (0.5, 8.75 + 317.5),
    ],
)
def test_a_layer_done_by_hand(clip: float, expected: float) -> None:
    y = mixed_linear(
        torch.tensor([[127.0, 7.0, -3.5]]), torch.tensor([1, 2, 0], dtype=torch.int32),
        pack_int4(torch.tensor([[3, -2]], dtype=torch.int8)), torch.tensor([[0.5]]),
        torch.tensor([[10]], dtype=torch.int8), torch.tensor([0.25]), 4, clip, torch.tensor([1.0]), None,
    )  # fmt: skip
    assert y.tolist() == [[expected + 1.0]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_token_does_not_depend_on_its_neighbours(case: Case) -> None:
    """So prefill and decode give the same bits."""
    x, *rest = case.args()
    whole = mixed_linear(x, *rest)
    alone = [mixed_linear(token[None], *rest)[0] for token in x.reshape(-1, x.shape[-1])]
    assert torch.equal(whole.reshape(-1, whole.shape[-1]), torch.stack(alone) if alone else whole)


def test_channels_may_come_in_any_place() -> None:
    """The order says which channel is which: moving channels and saying so changes nothing."""
    x, order, *rest = WIDE.args()
    places = torch.randperm(len(order), generator=torch.Generator().manual_seed(0))
    moved = places.argsort()[order.long()].int()
    assert torch.equal(mixed_linear(x[..., places], moved, *rest), mixed_linear(x, order, *rest))


def test_sums_that_use_other_codes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outlier in four bits instead of eight."""
    args = WIDE.args()
    right = implementation._product

    def coarse(x: torch.Tensor, clip: float, bits: int, *weight: torch.Tensor) -> torch.Tensor:
        return right(x, clip, min(bits, 4), *weight)

    monkeypatch.setattr(implementation, "_product", coarse)
    with pytest.raises(AssertionError, match="error ratio"):
        SUITES["mixed_linear"].compare(args, implementation.mixed_linear(*args))
