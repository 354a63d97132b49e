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
from ssmquant.numerics import code_limit
from ssmquant.quantizers import QUANTIZERS, clip, descent, gptq, round_to_nearest
from ssmquant.scheme import Granularity, TensorScheme

SIZE = 8
GROUPS = TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=SIZE)
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


def naive(weight: Tensor, x: Tensor, scheme: TensorScheme) -> tuple[Tensor, Tensor]:
    """Return codes and scales (a scale a weight): every code and scale by trial on the tokens themselves."""
    tokens, w, size = damped(x), weight.double(), scheme.group_size or weight.shape[1]
    start, limit = clip(w, moment(x), scheme), code_limit(scheme.bits)
    scale = start.scale.double().view(len(w), -1).repeat_interleave(size, dim=1)
    order = moment(x).diagonal().argsort(descending=True)
    codes = torch.empty_like(w)
    spread = spread_codes(weight, x, start.scale, scheme)
    for row, wanted in enumerate(w):

        def error(c: Tensor, s: Tensor, wanted: Tensor = wanted) -> float:
            return float((tokens @ (c * s - wanted)).square().sum())

        c, s = (
            min((spread[row], start.codes[row].double()), key=lambda c, s=scale[row]: error(c, s)),
            scale[row],
        )
        scale[row], codes[row] = s, c
    before = torch.inf
    for _ in range(5):
        for row, wanted in enumerate(w):
            c, s = codes[row], scale[row]
            for j in order.tolist():
                tried = [
                    torch.where(torch.arange(len(c)) == j, float(n), c) for n in range(-limit, limit + 1)
                ]
                c = min(
                    tried, key=lambda t, s=s, wanted=wanted: float((tokens @ (t * s - wanted)).square().sum())
                )
            for first in range(0, len(c), size):
                part = slice(first, first + size)
                rest = wanted - torch.where(
                    torch.arange(len(c)).div(size, rounding_mode="floor") == first // size, 0, c * s
                )
                found = torch.linalg.lstsq(
                    (tokens[:, part] @ c[part])[:, None], (tokens @ rest)[:, None]
                ).solution
                s[part] = found.float().double()
            codes[row], scale[row] = c, s
        after = float(((codes * scale - w) @ tokens.T).square().sum())
        if after >= 0.995 * before:
            break
        before = after
    return codes, scale


def spread_codes(weight: Tensor, x: Tensor, scale: Tensor, scheme: TensorScheme) -> Tensor:
    from ssmquant.quantizers.gptq import column_steps, spread_errors

    columns = weight.shape[1]
    return spread_errors(
        weight.double(), moment(x), column_steps(scale, columns), [scheme.bits] * columns
    ).double()


@pytest.mark.parametrize("scheme", [GROUPS, WIDE], ids=["groups", "rows"])
def test_codes_and_scales_are_those_of_trial(scheme: TensorScheme) -> None:
    weight, x = heavy(3, 2 * SIZE), inputs(60, 2 * SIZE)
    found = descent(weight, moment(x), scheme)
    codes, scale = naive(weight, x, scheme)
    assert torch.equal(found.codes.double(), codes)
    steps = found.scale.view(3, -1).repeat_interleave(2 * SIZE // found.scale.view(3, -1).shape[1], dim=1)
    assert torch.allclose(steps.double(), scale, rtol=1e-6)  # both in float32, a rounding apart


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    tokens=st.sampled_from([3, 40, 200]),
    scheme=st.sampled_from([GROUPS, WIDE]),
    start=st.sampled_from(["rtn", "clip", "gptq"]),
)
def test_no_row_gets_worse(seed: int, tokens: int, scheme: TensorScheme, start: str) -> None:
    weight, x = heavy(8, 3 * SIZE, seed=seed), inputs(tokens, 3 * SIZE, seed=seed + 1)
    before = output_error(weight, QUANTIZERS[start].choose(weight, scheme, moment(x)), scheme, damped(x))
    after = output_error(weight, descent(weight, moment(x), scheme), scheme, damped(x))
    assert bool((after <= before * (1 + 1e-6)).all())


@pytest.mark.parametrize(("scheme", "share"), [(GROUPS, 0.9), (WIDE, 0.95)])
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
        assert "row or group" in (refuses(GROUPS.model_copy(update={"symmetric": False})) or "")
        assert "row or group" in (refuses(TensorScheme(bits=8)) or "")


def test_the_nearest_codes_are_where_it_begins_if_they_are_better() -> None:
    """A Hessian without correlation: rounding to nearest is best for these scales, and stays."""
    weight = heavy(8, 2 * SIZE)
    found = descent(weight, torch.eye(2 * SIZE, dtype=torch.float64), WIDE)
    nearest = round_to_nearest(weight, WIDE)
    assert float((found.codes != nearest.codes).float().mean()) < 0.5
