"""`descent` against its steps done by trial, and its promise: no layer's output gets worse by it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.quantizers.test_clip import heavy, inputs
from torch import Tensor

from ssmquant.errors import InputError, SsmquantError
from ssmquant.formats import Codes, restored
from ssmquant.formats.int4_progressive import largest_multiplier
from ssmquant.quantizers import QUANTIZERS, clip, descent, gptq, round_to_nearest
from ssmquant.quantizers.gptq import spread_errors
from ssmquant.quantizers.grid import Grid, a_column
from ssmquant.scheme import Granularity, TensorScheme

SIZE = 8
GROUPS = TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=SIZE)
PROGRESSIVE = GROUPS.model_copy(update={"symmetric": False, "scale_dtype": "uint8"})
OFFSET = GROUPS.model_copy(update={"symmetric": False})
WIDE = TensorScheme(bits=8, granularity=Granularity.PER_CHANNEL)


def moment(x: Tensor) -> Tensor:
    return x.double().T @ x.double()


def damped(x: Tensor) -> Tensor:
    """Return tokens whose error is the one that is made small: a hundredth of a mean token is added in each channel."""
    x = x.double()
    mean = x.square().sum(dim=0).mean()
    return torch.cat([x / mean.sqrt(), 0.1 * torch.eye(x.shape[1], dtype=x.dtype)])


def output_error(weight: Tensor, found: Codes, scheme: TensorScheme, tokens: Tensor) -> Tensor:
    """Return the squared error of each row's outputs, ``[N]``."""
    return ((restored(found, scheme).double() - weight.double()) @ tokens.T).square().sum(dim=1)


def spread(weight: Tensor, x: Tensor, near: Codes, scheme: TensorScheme) -> Codes:
    return near.at(spread_errors(weight, moment(x), Grid.of(near, scheme.bits, weight.shape[1])))


def naive(weight: Tensor, x: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return integers and steps (a step a weight): every one of them by trial on the tokens themselves."""
    tokens, size, columns = damped(x), scheme.group_size or weight.shape[1], weight.shape[1]
    order = moment(x).diagonal().argsort(descending=True).tolist()

    def error(integers: Tensor, step: Tensor, row: Tensor) -> Tensor:
        return ((integers * step - row) @ tokens.T).square().sum(dim=-1)

    near = [clip(weight.double(), moment(x), scheme), round_to_nearest(weight.double(), scheme)]
    starts = near + [spread(weight.double(), x, n, scheme) for n in near]
    steps = [a_column(s.steps.double().view(len(weight), -1), columns) for s in starts]
    rows, begun = [], []
    for place, row in enumerate(weight.double()):
        tried = [(s.integers[place].double(), step[place]) for s, step in zip(starts, steps, strict=True)]
        best = min(
            range(len(tried)), key=lambda start, tried=tried, row=row: float(error(*tried[start], row))
        )
        rows.append(tried[best])
        begun.append(starts[best])
    units = [start.scale.double()[place] for place, start in enumerate(begun)]
    before = sum(float(error(*pair, row)) for pair, row in zip(rows, weight.double(), strict=True))
    for _ in range(4):
        for place, row in enumerate(weight.double()):
            integers, step = (t.clone() for t in rows[place])
            grid = Grid.of(begun[place], scheme.bits, columns)
            for j in order:
                lowest, highest = (int(part.expand(len(weight), -1)[place, j]) for part in grid[1:])
                every = torch.arange(lowest, highest + 1, dtype=torch.float64)
                tried = integers.repeat(len(every), 1)
                tried[:, j] = every
                integers = tried[error(tried, step, row).argmin()]
            for first in range(0, columns, size):
                inside = torch.arange(columns).div(size, rounding_mode="floor") == first // size
                if scheme.scale_dtype == "uint8":
                    zero_point = begun[place].zero_point[place, first // size]
                    multiples = units[place] * torch.arange(1, int(largest_multiplier(zero_point)) + 1)
                    tried = torch.where(inside, multiples[:, None], step)
                    step = tried[error(integers.expand(len(tried), -1), tried, row).argmin()]
                else:
                    rest = tokens @ (row - torch.where(inside, 0.0, integers * step))
                    along = tokens @ torch.where(inside, integers, 0.0)
                    step[inside] = (along @ rest / (along @ along)).float().double()
            if scheme.scale_dtype == "uint8":
                whole = tokens @ (integers * step)
                unit = (units[place] * (whole @ (tokens @ row)) / (whole @ whole)).float().double()
                step, units[place] = (step / units[place]).round() * unit, unit
            rows[place] = integers, step
        after = sum(float(error(*pair, row)) for pair, row in zip(rows, weight.double(), strict=True))
        if after >= 0.99 * before:
            break
        before = after
    return torch.stack([integers for integers, _ in rows]), torch.stack([step for _, step in rows])


@pytest.mark.parametrize("scheme", [GROUPS, OFFSET, PROGRESSIVE, WIDE], ids=TensorScheme.short)
def test_codes_and_scales_are_those_of_trial(scheme: TensorScheme) -> None:
    weight, x = heavy(3, 2 * SIZE), inputs(60, 2 * SIZE)
    found = descent(weight, moment(x), scheme)
    integers, step = naive(weight, x, scheme)
    assert torch.equal(found.integers.double(), integers)
    steps = a_column(found.steps, 2 * SIZE)
    assert torch.allclose(steps.double(), step, rtol=1e-6)  # both in float32, a rounding apart


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    tokens=st.sampled_from([3, 40, 200]),
    scheme=st.sampled_from([GROUPS, OFFSET, PROGRESSIVE, WIDE]),
    start=st.sampled_from(["rtn", "clip", "gptq"]),
)
def test_no_row_gets_worse(seed: int, tokens: int, scheme: TensorScheme, start: str) -> None:
    weight, x = heavy(8, 3 * SIZE, seed=seed), inputs(tokens, 3 * SIZE, seed=seed + 1)
    before = output_error(weight, QUANTIZERS[start].choose(weight, scheme, moment(x)), scheme, damped(x))
    after = output_error(weight, descent(weight, moment(x), scheme), scheme, damped(x))
    assert bool((after <= before * (1 + 1e-6)).all())


@pytest.mark.parametrize(("scheme", "share"), [(GROUPS, 0.9), (PROGRESSIVE, 0.9), (WIDE, 0.95)])
def test_outputs_are_nearer_than_gptqs(scheme: TensorScheme, share: float) -> None:
    weight, x = heavy(64, 8 * SIZE), inputs(300, 8 * SIZE)
    ours = output_error(weight, descent(weight, moment(x), scheme), scheme, x.double()).sum()
    assert ours < share * output_error(weight, gptq(weight, moment(x), scheme), scheme, x.double()).sum()


def test_inputs_never_seen_get_the_nearest_codes() -> None:
    weight, x = heavy(8, 2 * SIZE), inputs(60, 2 * SIZE)
    x[:, 3] = 0
    found = descent(weight, moment(x), WIDE)
    step = found.scale.double()
    assert torch.equal(found.codes[:, 3].double(), (weight[:, 3].double() / step).round().clamp(-127, 127))


@pytest.mark.parametrize("exponent", [-40, 40])
def test_a_factor_of_the_hessian_changes_nothing(exponent: int) -> None:
    weight, h = heavy(8, 2 * SIZE), moment(inputs(60, 2 * SIZE))
    one, other = (descent(weight, factor * h, GROUPS) for factor in (1.0, 2.0**exponent))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale, other.scale)


def test_zeros_keep_a_scale_and_arguments_are_not_written_to() -> None:
    weight, h = heavy(4, 2 * SIZE), moment(inputs(60, 2 * SIZE))
    weight[1] = 0
    kept = weight.clone(), h.clone()
    found = descent(weight, h, GROUPS)
    assert torch.equal(weight, kept[0]) and torch.equal(h, kept[1])
    assert not found.codes[1].any()
    assert bool((found.scale > 0).all() and found.scale.isfinite().all())


def test_what_it_cannot_do_is_refused() -> None:
    weight, h = heavy(4, 2 * SIZE), moment(inputs(60, 2 * SIZE))
    with pytest.raises(InputError, match=r"\[16, 16\]"):
        descent(weight, h[:8, :8], GROUPS)
    with pytest.raises(SsmquantError, match="NaN"):
        descent(weight, h * float("nan"), GROUPS)
    for name in ("descent", "descent-sequential"):
        refuses = QUANTIZERS[name].refuses
        assert refuses(GROUPS) is None and refuses(WIDE) is None
        assert "row or group" in (refuses(TensorScheme(bits=8)) or "")


def test_the_nearest_codes_are_where_it_begins_if_they_are_better() -> None:
    """A Hessian without correlation: rounding to nearest is best for these scales, and stays."""
    weight = heavy(8, 2 * SIZE)
    found = descent(weight, torch.eye(2 * SIZE, dtype=torch.float64), WIDE)
    nearest = round_to_nearest(weight, WIDE)
    assert float((found.codes != nearest.codes).float().mean()) < 0.5
