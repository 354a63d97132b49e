"""What `outlier_linear` promises beyond its tolerance class: the codes, outliers and results of bitsandbytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssmquant import numerics
from ssmquant.ops.int8_linear import int8_linear
from ssmquant.ops.outlier_linear import outlier_columns, outlier_linear
from ssmquant.ops.outlier_linear import reference as implementation
from ssmquant.quantizers import round_to_nearest
from ssmquant.scheme import TensorScheme
from ssmquant.tolerance import assert_equal_codes, assert_half

from .cases import SUITES, Case

#: Written by scripts/bitsandbytes_golden.py.
GOLDEN = load_file(Path(__file__).with_name("golden") / "bitsandbytes.safetensors")
LAYERS = {"none": 0, "few": 3, "many": 51, "one-token": 4}
CASES = SUITES["outlier_linear"].cases
ROWS = TensorScheme(granularity="per-channel", outlier_threshold=6.0)


def of(layer: str, *names: str) -> list[Tensor]:
    return [GOLDEN[f"{layer}.{name}"] for name in names]


def assert_same_codes(got: Tensor, x: Tensor, absmax: Tensor, theirs: Tensor) -> None:
    """Equal, but for exact middles between two codes.

    Those are not rare: half of a row's maximum is 63.5 steps, and float16 has few numbers. There bitsandbytes rounds up
    or down by how the last bit of ``127 / absmax`` in float32 was rounded, and so do we by that of our scale.
    """
    steps = 127 * x.double() / absmax.double()[:, None]
    halves = (2 * steps).round()
    middle = halves.remainder(2).eq(1) & ((2 * steps - halves).abs() < 1e-9)
    assert_equal_codes(got[~middle], theirs[~middle])
    assert middle.double().mean() <= 2e-3
    assert bool(((got.double() - steps).abs() <= 0.5 + 1e-9)[middle].all())


@pytest.mark.parametrize("layer", LAYERS)
def test_codes_are_those_of_bitsandbytes(layer: str) -> None:
    x, absmax, theirs, outliers = of(layer, "x", "absmax", "codes", "outliers")
    columns = outlier_columns(x, 6.0)
    assert columns.nonzero().flatten().tolist() == outliers.tolist()
    assert len(outliers) == LAYERS[layer]
    ordinary = x.masked_fill(x.abs() >= 6.0, 0.0)
    scale = numerics.per_token_scale(ordinary)
    codes = numerics.quantize(ordinary, scale).masked_fill(columns, 0)
    assert_same_codes(codes, x.masked_fill(columns, 0.0), absmax, theirs)


@pytest.mark.parametrize("layer", LAYERS)
def test_weight_codes_are_those_of_bitsandbytes(layer: str) -> None:
    weight, absmax, theirs = of(layer, "weight", "weight_absmax", "weight_codes")
    found = round_to_nearest(weight.float(), ROWS)
    assert_same_codes(found.codes, weight, absmax, theirs)
    assert torch.equal(found.scale, (absmax.double() / 127).float())


@pytest.mark.parametrize("layer", LAYERS)
def test_results_are_those_of_bitsandbytes(layer: str) -> None:
    """Theirs are float16, so the class of half precision: the same sums, rounded to float16 as they go."""
    x, weight, absmax, bias, y = of(layer, "x", "weight_codes", "weight_absmax", "bias", "y")
    got = outlier_linear(x, 6.0, weight, absmax / 127, bias.float(), None)
    assert_half(got.half(), y)


def test_the_outliers_of_bitsandbytes_matter() -> None:
    """Otherwise the test above would not see whether they are there."""
    x, weight, absmax, bias, y = of("few", "x", "weight_codes", "weight_absmax", "bias", "y")
    with pytest.raises(AssertionError, match="error ratio"):
        assert_half(outlier_linear(x, 100.0, weight, absmax / 127, bias.float(), None).half(), y)


def test_without_outliers_it_is_the_int8_layer() -> None:
    (case,) = (case for case in CASES if case.name == "no outliers")
    x, _threshold, *rest = case.args()
    half = x.half()
    scale = numerics.per_token_scale(half)
    assert not outlier_columns(x, 6.0).any()
    assert torch.equal(
        outlier_linear(x, 6.0, *rest), int8_linear(numerics.quantize(half, scale), scale, *rest)
    )


def test_an_outlier_column_is_one_for_all_tokens() -> None:
    """A small value beside an outlier of the column keeps float16, where one alone has a code."""
    weight, scale = torch.tensor([[127, 127]], dtype=torch.int8), torch.tensor([1 / 127])
    tokens = torch.tensor([[5.0, 0.01], [0.0, 8.0]])
    together = outlier_linear(tokens, 6.0, weight, scale, None, None)
    alone = outlier_linear(tokens[:1], 6.0, weight, scale, None, None)
    assert together[0].item() == pytest.approx(5.01, rel=1e-3)
    assert alone[0].item() == pytest.approx(5.0, rel=1e-3)  # 0.01 is a quarter of a step


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_larger_outlier_costs_the_others_nothing(case: Case) -> None:
    """What the decomposition is for: without it, one element takes the steps of its whole token."""
    x, threshold, weight, scale, _bias, _out = case.args()
    columns = outlier_columns(x, threshold)
    larger = torch.where(x.abs() >= threshold, x * 8.0, x)
    rest = weight.masked_fill(columns, 0)
    found = [outlier_linear(t, threshold, rest, scale, None, None) for t in (x, larger)]
    assert torch.equal(*found)


def test_a_threshold_that_is_missed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An implementation that takes "above" for "from" differs where an element is just at the threshold."""
    (case,) = (case for case in CASES if case.name == "at the threshold")
    args = case.args()
    monkeypatch.setattr(implementation, "_outliers", lambda half, limit: half.float().abs() > limit)
    with pytest.raises(AssertionError, match="error ratio"):
        SUITES["outlier_linear"].compare(args, implementation.outlier_linear(*args))
