"""GPTQ: the codes of the paper's algorithm, what it is good for, and inputs that calibration never saw."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssmquant.errors import InputError, SsmquantError
from ssmquant.formats import Codes
from ssmquant.quantizers import gptq, round_to_nearest
from ssmquant.quantizers.gptq import spread_errors
from ssmquant.quantizers.grid import Grid, a_column
from ssmquant.scheme import Granularity, TensorScheme

from . import naive

ROWS, COLUMNS = 24, 96
SCHEMES = {
    scheme.short(): scheme
    for scheme in (
        TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=32),
        TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=32, symmetric=False),
        TensorScheme(bits=8, granularity=Granularity.PER_CHANNEL),
        TensorScheme(bits=3, granularity=Granularity.PER_TENSOR),
    )
}
INT4 = SCHEMES["int4 per-group 32"]
EVERY = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
ORDERS = pytest.mark.parametrize("act_order", [False, True], ids=["as they are", "largest first"])


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(seed: int = 0, columns: int = COLUMNS) -> Tensor:
    return draw(ROWS, columns, seed=seed)


def inputs(tokens: int = 400, columns: int = COLUMNS, seed: int = 1) -> Tensor:
    """Return correlated inputs of unlike size, as layers have them."""
    mixing = draw(columns, columns, seed=1000) / columns**0.5 + torch.eye(columns)
    size = torch.logspace(-1, 1, columns)[torch.arange(columns) * 37 % columns]
    return draw(tokens, columns, seed=seed) @ mixing * size


def moment(x: Tensor) -> Tensor:
    return x.double().T @ x.double()


def grid(w: Tensor, scheme: TensorScheme) -> Grid:
    """Return what every weight may be, each part ``[ROWS, COLUMNS]``."""
    parts = Grid.of(round_to_nearest(w, scheme), scheme.bits, w.shape[1])
    return Grid(*(part.expand(w.shape) for part in parts))


def output_error(w: Tensor, found: Codes, scheme: TensorScheme, x: Tensor) -> float:
    """Return ``||(Q - W) x||^2``."""
    difference = found.integers.double() * grid(w, scheme).step.double() - w.double()
    return float((difference @ x.double().T).square().sum())


# The algorithm


@EVERY
@ORDERS
@pytest.mark.parametrize("block", [1, 7, 32, 128])
def test_codes_are_those_of_algorithm_1(scheme: TensorScheme, act_order: bool, block: int) -> None:
    w, h = weight(), moment(inputs())
    found = gptq(w, h, scheme, block=block, act_order=act_order)
    order = np.argsort(-np.diag(h.numpy()), kind="stable") if act_order else np.arange(COLUMNS)
    parts = [part.numpy()[:, order] for part in grid(w, scheme)]
    expected = naive.algorithm_1(
        w.numpy()[:, order], h.numpy()[order][:, order], *parts, B=block, damping=0.01
    )
    assert found.codes.dtype == torch.int8
    assert torch.equal(found.integers[:, torch.from_numpy(order)], torch.from_numpy(expected))
    assert torch.equal(found.steps, round_to_nearest(w, scheme).steps)


@EVERY
def test_codes_are_those_of_the_definition(scheme: TensorScheme) -> None:
    w, h = weight(), moment(inputs())
    expected = naive.definition(
        w.numpy(), h.numpy(), *(part.numpy() for part in grid(w, scheme)), damping=0.05
    )
    found = gptq(w, h, scheme, damping=0.05, act_order=False)
    assert torch.equal(found.integers, torch.from_numpy(expected))


@EVERY
@ORDERS
def test_blocks_change_nothing(scheme: TensorScheme, act_order: bool) -> None:
    w, h = weight(2), moment(inputs(seed=3))
    whole = gptq(w, h, scheme, block=COLUMNS, act_order=act_order)
    for block in (1, 5, 32, 95, 1000):
        assert torch.equal(gptq(w, h, scheme, block=block, act_order=act_order).codes, whole.codes)


def test_columns_may_differ_in_width() -> None:
    w, h = weight(), moment(inputs())
    narrow, wide = grid(w[:, :64], INT4), grid(w[:, 64:], SCHEMES["int8 per-channel"])
    both = Grid(*(torch.cat(parts, dim=1) for parts in zip(narrow, wide, strict=True)))
    codes = spread_errors(w, h, both, act_order=True)
    assert codes[:, :64].abs().max() == 7
    assert codes[:, 64:].abs().max() == 127
    order = h.diagonal().argsort(descending=True)
    ordered = Grid(*(part[:, order] for part in both))
    permuted = spread_errors(w[:, order], h[order][:, order], ordered, act_order=False)
    assert torch.equal(codes[:, order], permuted)


def test_steps_belong_to_columns() -> None:
    groups = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert a_column(groups, 4).tolist() == [[1, 1, 2, 2], [3, 3, 4, 4]]
    assert a_column(torch.tensor([1.0, 2.0]), 3).tolist() == [[1, 1, 1], [2, 2, 2]]
    assert a_column(torch.tensor([5.0]), 2).tolist() == [[5, 5]]


# What it is good for


@EVERY
@ORDERS
@pytest.mark.parametrize("seed", range(3))
def test_the_output_is_nearer_than_that_of_the_nearest_codes(
    scheme: TensorScheme, act_order: bool, seed: int
) -> None:
    w, x, unseen = weight(seed), inputs(seed=10 + seed), inputs(seed=20 + seed)
    found, nearest = gptq(w, moment(x), scheme, act_order=act_order), round_to_nearest(w, scheme)
    assert not torch.equal(found.codes, nearest.codes)
    for tokens in (x, unseen):
        assert output_error(w, found, scheme, tokens) < 0.8 * output_error(w, nearest, scheme, tokens)


def test_large_inputs_first_is_nearer_than_last() -> None:
    """Late columns bear what is left of all errors: they had better be small ones."""
    error = {True: 0.0, False: 0.0}
    for seed in range(5):
        w, x = weight(seed), inputs(seed=seed)
        for act_order in error:
            found = gptq(w, moment(x), INT4, act_order=act_order)
            error[act_order] += output_error(w, found, INT4, x)
    assert error[True] < 0.8 * error[False]


@EVERY
@ORDERS
def test_inputs_without_correlation_get_the_nearest_codes(scheme: TensorScheme, act_order: bool) -> None:
    w, h = weight(), torch.logspace(-3, 3, COLUMNS, dtype=torch.float64).diag()
    found, nearest = gptq(w, h, scheme, act_order=act_order), round_to_nearest(w, scheme)
    assert torch.equal(found.codes, nearest.codes)
    assert torch.equal(found.scale, nearest.scale)


def test_a_weight_in_half_precision_is_its_float32() -> None:
    w, h = weight().half(), moment(inputs())
    half, full = gptq(w, h, INT4), gptq(w.float(), h, INT4)
    assert torch.equal(half.codes, full.codes)
    assert torch.equal(half.scale, full.scale)


def test_arguments_are_not_written_to() -> None:
    w, h = weight().double(), moment(inputs())
    h[3] = h[:, 3] = 0.0
    before = w.clone(), h.clone()
    gptq(w, h, INT4)
    assert torch.equal(w, before[0])
    assert torch.equal(h, before[1])


# Hessians as they come


@settings(deadline=None, max_examples=8)
@given(st.integers(-40, 40), st.booleans(), st.sampled_from(list(SCHEMES)))
def test_a_factor_of_the_hessian_changes_nothing(exponent: int, dead: bool, name: str) -> None:
    """A power of two changes no rounding, so the codes are equal for certain; inputs that were never seen included."""
    w, h = weight(), moment(inputs())
    if dead:
        h[5:40] = h[:, 5:40] = 0.0
    scaled = gptq(w, h * 2.0**exponent, SCHEMES[name])
    assert torch.equal(scaled.codes, gptq(w, h, SCHEMES[name]).codes)


@EVERY
@pytest.mark.parametrize("factor", [1 / 3, 7e9])
def test_a_factor_that_rounds_changes_no_code_of_these(scheme: TensorScheme, factor: float) -> None:
    w, h = weight(), moment(inputs())
    assert torch.equal(gptq(w, factor * h, scheme).codes, gptq(w, h, scheme).codes)


@EVERY
@ORDERS
def test_inputs_never_seen_get_the_nearest_codes_and_leave_the_others_alone(
    scheme: TensorScheme, act_order: bool
) -> None:
    """However many they are, damping is that of the inputs that were seen."""
    x = inputs()
    x[:, 32:64] = 0.0
    w = weight()
    w[:, 32:64] *= 0.01  # so that they set no scale but their own group's
    found = gptq(w, moment(x), scheme, act_order=act_order)
    assert torch.equal(found.codes[:, 32:64], round_to_nearest(w, scheme).codes[:, 32:64])
    seen = [*range(32), *range(64, 96)]
    alone = gptq(w[:, seen], moment(x[:, seen]), scheme, act_order=act_order)
    assert torch.equal(found.codes[:, seen], alone.codes)


def test_inputs_that_were_all_zero_give_the_nearest_codes() -> None:
    w = weight()
    found = gptq(w, torch.zeros(COLUMNS, COLUMNS), INT4)
    assert torch.equal(found.codes, round_to_nearest(w, INT4).codes)


def test_fewer_tokens_than_columns_will_do(caplog: pytest.LogCaptureFixture) -> None:
    """A Hessian of low rank is made regular by the damping that every Hessian gets."""
    w, x = weight(), inputs(tokens=10)
    found = gptq(w, moment(x), INT4)
    assert not caplog.records
    assert output_error(w, found, INT4, x) < 0.01 * output_error(w, round_to_nearest(w, INT4), INT4, x)


def test_damping_is_raised_until_the_hessian_is_regular(caplog: pytest.LogCaptureFixture) -> None:
    w, singular = weight(), torch.ones(COLUMNS, COLUMNS)
    with caplog.at_level(logging.WARNING, logger="ssmquant"):
        found = gptq(w, singular, INT4, damping=0.0)
    (record,) = caplog.records
    assert record.getMessage() == "gptq: Cholesky failed at damping 0 of the mean diagonal; trying 0.01"
    assert torch.equal(found.codes, gptq(w, singular, INT4, damping=0.01).codes)


def test_more_damping_than_the_usual_is_found_where_it_takes_more(caplog: pytest.LogCaptureFixture) -> None:
    w, h = weight(), moment(inputs())
    lowest, mean = float(torch.linalg.eigvalsh(h)[0]), float(h.diagonal().mean())
    shift = lowest + 0.05 * mean  # the least eigenvalue becomes -0.05 of the former mean: 0.1 makes up for it
    indefinite = h - shift * torch.eye(COLUMNS)
    with caplog.at_level(logging.WARNING, logger="ssmquant"):
        found = gptq(w, indefinite, INT4)
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == ["0.1"]
    assert torch.equal(found.codes, gptq(w, indefinite, INT4, damping=0.1).codes)


def test_a_hessian_that_is_none_is_refused_in_the_end(caplog: pytest.LogCaptureFixture) -> None:
    indefinite = moment(inputs())
    indefinite[0, 1] = indefinite[1, 0] = 1e6 * indefinite.diagonal().max()
    with (
        caplog.at_level(logging.WARNING, logger="ssmquant"),
        pytest.raises(
            SsmquantError, match=r"cannot be factorised even with damping 1; calibrate on more text"
        ),
    ):
        gptq(weight(), indefinite, INT4)
    assert [r.getMessage().rpartition(" ")[2] for r in caplog.records] == ["0.1", "1"]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_a_hessian_that_is_not_finite_is_refused(wrong: float) -> None:
    h = moment(inputs())
    h[2, 3] = wrong
    with pytest.raises(SsmquantError, match="the Hessian has NaN or infinity; the calibration text"):
        gptq(weight(), h, INT4)


@pytest.mark.parametrize("shape", [(0,), (COLUMNS,), (COLUMNS, COLUMNS - 1), (32, 32)])
def test_the_hessian_of_another_layer_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        InputError, match=r"must have shape \[96, 96\], got .*; observe the input of this layer"
    ):
        gptq(weight(), torch.zeros(shape), INT4)
