"""Each comparison shown to go red: it is given what a subtly wrong implementation answers.

An implementation is sabotaged by running the right one on wrong arguments, or with one step of it replaced. A sabotage
passes unseen only if every case of the op's suite stands the comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.ops import recurrent_state
from ssmquant.ops.hadamard import reference as transform
from ssmquant.ops.hadamard.matrix import matrix

from .cases import SUITES, Args

Sabotage = Callable[[Args], Args]


def place(name: str, argument: str) -> int:
    return [a.name for a in getattr(torch.ops.ssmquant, name).default._schema.arguments].index(argument)


def with_(**changes: Callable[[Any], Any]) -> Callable[[str], Sabotage]:
    """Return a sabotage that changes arguments, those that are None excepted."""

    def of(name: str) -> Sabotage:
        def sabotage(args: Args) -> Args:
            wrong = list(args)
            for argument, change in changes.items():
                at = place(name, argument)
                wrong[at] = None if args[at] is None else change(args[at])
            return tuple(wrong)

        return sabotage

    return of


def nothing(_: Any) -> None:
    return None


def of_the_neighbour(scale: Tensor) -> Tensor:
    """Give every channel the scale of its neighbour."""
    return scale.roll(1, 0)


def heads_go_round(shared: Tensor) -> Tensor:
    """Let the groups of B or C take turns over the heads, in place of a run of heads each (for scales of one)."""
    return shared.roll(1, 2)


def first_of(scale: Tensor) -> Tensor:
    return scale[:1].contiguous()


def first_token(scale: Tensor) -> Tensor:
    return scale.flatten()[:1].expand_as(scale).contiguous()


def swapped_nibbles(weight: Tensor) -> Tensor:
    return (weight >> 4) | (weight << 4) if weight.dtype == torch.uint8 else weight


WRONG_ARGUMENTS: list[tuple[str, str, Callable[[str], Sabotage]]] = [
    ("int8_linear", "the scale of the wrong row", with_(weight_scale=of_the_neighbour)),
    ("int8_linear", "the first row's scale for all", with_(weight_scale=first_of)),
    ("int8_linear", "the first token's scale for all", with_(x_scale=first_token)),
    ("int8_linear", "no bias", with_(bias=nothing)),
    ("int8_linear", "the output scale of the wrong channel", with_(scale_out=of_the_neighbour)),
    (
        "int8_linear",
        "the last column left out",
        with_(x=lambda x: x * (torch.arange(x.shape[-1]) < x.shape[-1] - 1)),
    ),
    ("int4_linear", "nibbles in the wrong order", with_(packed=lambda p: (p >> 4) | (p << 4))),
    ("int4_linear", "the scale of the wrong group", with_(weight_scale=lambda s: s.roll(1, 1))),
    ("int4_linear", "the scale of the wrong row", with_(weight_scale=of_the_neighbour)),
    ("int4_linear", "no bias", with_(bias=nothing)),
    ("int4_progressive_linear", "nibbles in the wrong order", with_(packed=lambda p: (p >> 4) | (p << 4))),
    ("int4_progressive_linear", "the grid of the wrong group", with_(grid=lambda g: g.roll(1, 1))),
    ("int4_progressive_linear", "no zero points", with_(grid=lambda g: (g & 0xF).clamp(max=8))),
    ("int4_progressive_linear", "the scale of the wrong row", with_(weight_scale=of_the_neighbour)),
    ("int4_progressive_linear", "no bias", with_(bias=nothing)),
    ("float_linear", "nibbles in the wrong order", with_(weight=swapped_nibbles)),
    ("float_linear", "the scale of the wrong row", with_(scale=of_the_neighbour)),
    (
        "float_linear",
        "the scale of the wrong group",
        with_(scale=lambda s: s.roll(1, -1) if s.dim() == 2 else s),
    ),
    ("float_linear", "the zero point of the wrong group", with_(zero_point=lambda z: z.roll(1, 1))),
    ("float_linear", "no zero points", with_(zero_point=nothing)),
    ("float_linear", "the grid of the wrong group", with_(grid=lambda g: g.roll(1, 1))),
    ("float_linear", "x in half precision", with_(x=lambda x: x.half().float())),
    ("float_linear", "no bias", with_(bias=nothing)),
    ("mixed_linear", "channels in the order of the model", with_(order=lambda o: o.sort().values)),
    ("mixed_linear", "the inverse order", with_(order=lambda o: o.argsort().int())),
    ("mixed_linear", "nibbles in the wrong order", with_(packed=lambda p: (p >> 4) | (p << 4))),
    ("mixed_linear", "the scale of the wrong group", with_(weight_scale=lambda s: s.roll(1, 1))),
    ("mixed_linear", "the scale of the wrong row", with_(weight_scale=of_the_neighbour)),
    ("mixed_linear", "outliers in the wrong order", with_(outliers=lambda c: c.roll(1, 1))),
    ("mixed_linear", "the outlier scale of the wrong row", with_(outlier_scale=of_the_neighbour)),
    ("mixed_linear", "a bit too many", with_(bits=lambda bits: min(bits + 1, 8))),
    ("mixed_linear", "no clipping", with_(clip=lambda _: 1.0)),
    ("mixed_linear", "no bias", with_(bias=nothing)),
    ("outlier_linear", "no outliers", with_(threshold=lambda _: 1e4)),
    ("outlier_linear", "a lower threshold", with_(threshold=lambda t: t / 2)),
    ("outlier_linear", "the scale of the wrong row", with_(weight_scale=of_the_neighbour)),
    ("outlier_linear", "no bias", with_(bias=nothing)),
    ("causal_conv1d", "taps in reverse", with_(weight=lambda w: w.flip(1))),
    ("causal_conv1d", "the oldest tap left out", with_(weight=lambda w: w * (torch.arange(w.shape[1]) > 0))),
    ("causal_conv1d", "a sequence that starts from nothing", with_(state=torch.zeros_like)),
    ("causal_conv1d", "the scale of the wrong channel", with_(x_scale=of_the_neighbour)),
    ("causal_conv1d", "no bias", with_(bias=nothing)),
    ("ssd", "no dt_bias", with_(dt_bias=torch.zeros_like)),
    ("ssd", "no D term", with_(D=torch.zeros_like)),
    ("ssd", "heads of the wrong group", with_(B=heads_go_round)),
    ("ssd", "no upper limit of dt", with_(dt_max=lambda _: float("inf"))),
    ("ssd", "no lower limit of dt", with_(dt_min=lambda _: 0.0)),
    ("ssd", "a state that starts from nothing", with_(state=torch.zeros_like)),
    ("ssd", "the scale of the wrong channel", with_(x_scale=of_the_neighbour)),
    ("ssd", "B and C exchanged", lambda name: lambda a: (*a[:5], a[7], a[8], a[5], a[6], *a[9:])),
    ("ssd", "rounded a token late", with_(interval=lambda n: n and n + 1)),
    ("selective_scan", "no dt_bias", with_(dt_bias=torch.zeros_like)),
    ("selective_scan", "no D term", with_(D=torch.zeros_like)),
    ("selective_scan", "the wrong state channel", with_(A=lambda a: a.roll(1, 1))),
    ("selective_scan", "a state that starts from nothing", with_(state=torch.zeros_like)),
    ("selective_scan", "the scale of the wrong channel", with_(dt_scale=of_the_neighbour)),
    ("selective_scan", "rounded a token late", with_(interval=lambda n: n and n + 1)),
    ("rms_norm", "no eps", with_(eps=lambda _: 0.0)),
    ("rms_norm", "no gain", with_(weight=torch.ones_like)),
    ("rms_norm", "the output scale of the wrong channel", with_(scale_out=of_the_neighbour)),
    ("gated_rms_norm", "no eps", with_(eps=lambda _: 0.0)),
    ("gated_rms_norm", "one group", lambda name: lambda a: (*a[:5], a[0].shape[-1], *a[6:])),
    ("gated_rms_norm", "no transform", with_(hadamard=lambda _: False)),
    ("gated_rms_norm", "the scale of the wrong channel", with_(z_scale=of_the_neighbour)),
    ("gate", "y and z exchanged", lambda name: lambda a: (a[1], a[0], *a[2:]) if a[2] is None else a),
    ("gate", "no transform", with_(hadamard=lambda _: False)),
    ("gate", "the scale of the wrong channel", with_(z_scale=of_the_neighbour)),
    ("quantize_static", "the scale of the wrong channel", with_(scale=of_the_neighbour)),
    ("quantize_per_token", "a bit too many", with_(bits=lambda bits: min(bits + 1, 8))),
    ("int8_embedding", "the next row", with_(ids=lambda ids: (ids + 1) % 7)),
    ("int8_embedding", "the scale of the wrong row", with_(scale=of_the_neighbour)),
    ("int4_embedding", "the next row", with_(ids=lambda ids: (ids + 1) % 7)),
    ("int4_embedding", "nibbles in the wrong order", with_(packed=lambda p: (p >> 4) | (p << 4))),
    ("int4_embedding", "the scale of the wrong group", with_(scale=lambda s: s.roll(1, 1))),
    ("int4_embedding", "the scale of the wrong row", with_(scale=of_the_neighbour)),
]


def assert_seen(name: str, answers: Callable[[Args], Any]) -> None:
    """Assert that the op's comparison fails for some case, and stands the right answers to the same arguments."""
    suite, seen = SUITES[name], []
    for case in suite.cases:
        try:
            suite.compare(case.args(), answers(case.args()))
        except AssertionError as error:
            seen.append(f"{case.name}: {error}")
            suite.compare(case.args(), suite.op(*case.args()))
    assert seen, f"{name}: the sabotage was not seen in any of {len(suite.cases)} cases"


@pytest.mark.parametrize(
    ("name", "sabotage"), [pytest.param(n, s(n), id=f"{n}: {what}") for n, what, s in WRONG_ARGUMENTS]
)
def test_wrong_arguments_are_seen(name: str, sabotage: Sabotage) -> None:
    assert_seen(name, lambda args: SUITES[name].op.reference(*sabotage(args)))


def test_every_op_is_sabotaged() -> None:
    transformed = {"hadamard"}  # by `test_a_transposed_transform_is_seen`
    assert {name for name, _, _ in WRONG_ARGUMENTS} | transformed == SUITES.keys()


def truncating(x: Tensor, bits: int = 8) -> Tensor:
    limit = numerics.code_limit(bits)
    return x.trunc().clamp(-limit, limit).to(torch.int8)


def half_away_from_zero(x: Tensor, bits: int = 8) -> Tensor:
    limit = numerics.code_limit(bits)
    return (x.abs() + 0.5).floor().copysign(x).clamp(-limit, limit).to(torch.int8)


def to_minus_128(x: Tensor, bits: int = 8) -> Tensor:
    limit = numerics.code_limit(bits)
    return x.round().clamp(-limit - 1, limit).to(torch.int8)


ROUNDED = [name for name, suite in SUITES.items() if suite.scale_out] + [
    "quantize_static",
    "quantize_per_token",
]


@pytest.mark.parametrize("name", [*ROUNDED, "ssd", "selective_scan"])
def test_truncation_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_replaced_is_seen(name, monkeypatch, numerics, round_clamp=truncating)


@pytest.mark.parametrize("wrong", [half_away_from_zero, to_minus_128])
def test_rounding_and_clamping_by_another_rule_is_seen(
    wrong: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_replaced_is_seen("quantize_static", monkeypatch, numerics, round_clamp=wrong)


@pytest.mark.parametrize("name", ["ssd", "selective_scan"])
def test_a_state_that_is_not_rounded_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes are right, but the tokens after a rounding go on from the exact state."""
    exact: list[Tensor] = []
    right_read, right_write = recurrent_state.read, recurrent_state.write

    def write(state: Tensor, state_scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        exact.append(state)
        return right_write(state, state_scale, dtype)

    def read(state: Tensor, state_scale: Tensor | None) -> Tensor:
        return exact.pop() if exact else right_read(state, state_scale)

    assert_replaced_is_seen(name, monkeypatch, recurrent_state, write=write, read=read)


@pytest.mark.parametrize("name", ["gate", "gated_rms_norm", "hadamard"])
def test_a_transposed_transform_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Paley's matrix is skew: on the other side of the product it is another transform."""
    assert_replaced_is_seen(name, monkeypatch, transform, matrix=lambda n: matrix(n).T)


def assert_replaced_is_seen(
    name: str, monkeypatch: pytest.MonkeyPatch, owner: Any, **wrong: Callable[..., Any]
) -> None:
    def answers(args: Args) -> Any:
        with monkeypatch.context() as patch:
            for attribute, replacement in wrong.items():
                patch.setattr(owner, attribute, replacement)
            return SUITES[name].op.reference(*args)

    assert_seen(name, answers)
