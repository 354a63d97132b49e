"""Int4 with zero points: the rounding, the bytes, what they stand for, and what the format does not run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.tiny_models import saved
from torch import Tensor

import ssmquant
from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.formats import Codes, format_for, restored
from ssmquant.quantizers import QUANTIZERS, round_to_nearest
from ssmquant.scheme import Granularity, TensorScheme

SCHEME = TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=4, symmetric=False)
FORMAT = format_for(SCHEME)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(weight: Tensor) -> np.ndarray:
    """Return the rounded weight, worked out element by element with the usual unsigned codes."""
    out = np.zeros(weight.shape)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], 4):
            group = weight[row, start : start + 4].double().numpy()
            low, high = min(group.min(), 0.0), max(group.max(), 0.0)
            scale = (high - low) / 15
            zero = round(-low / scale)
            for k, value in enumerate(group):
                code = min(max(round(value / scale) + zero, 0), 15)
                out[row, start + k] = (code - zero) * scale
    return out


def test_the_rounding_is_that_of_unsigned_codes() -> None:
    weight = (
        draw(6, 20) + torch.linspace(-2, 2, 6)[:, None]
    )  # the first and last rows' groups lie on one side of zero
    found = restored(round_to_nearest(weight, SCHEME), SCHEME)
    assert np.allclose(found.numpy(), naive(weight), atol=1e-6)


@given(st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4))
def test_zero_is_kept_and_errors_are_within_a_step(values: list[float]) -> None:
    """Half a step of its own, half of the zero point's."""
    weight = torch.tensor([values])
    codes = round_to_nearest(weight, SCHEME)
    back = restored(codes, SCHEME)
    assert codes.zero_point is not None and -8 <= int(codes.zero_point) <= 7
    assert float((back - weight).abs().max()) <= float(codes.scale) * (1 + 1e-5)
    assert not bool(back[weight == 0].any())


def test_a_group_of_zeros() -> None:
    codes = round_to_nearest(torch.zeros(1, 4), SCHEME)
    assert codes.scale.tolist() == [[pytest.approx(1 / 15)]]
    assert restored(codes, SCHEME).tolist() == [[0.0] * 4]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_every_code_is_used(bits: int) -> None:
    x = torch.linspace(-1, 3, 5000)
    scale, zero_point = numerics.scale_and_zero_point(x.min(), x.max(), bits)
    codes = numerics.quantize_asymmetric(x, scale, zero_point, bits)
    assert codes.unique().tolist() == list(range(-(2 ** (bits - 1)), 2 ** (bits - 1)))
    assert torch.all(codes.diff() >= 0)


def test_it_is_finer_than_symmetric_codes_where_weights_lean_to_a_side() -> None:
    weight = draw(8, 16).abs()
    symmetric = SCHEME.model_copy(update={"symmetric": True})
    one, other = (
        float((restored(round_to_nearest(weight, s), s) - weight).square().sum()) for s in (SCHEME, symmetric)
    )
    assert one < 0.5 * other


def test_the_bytes_are_the_documented_ones() -> None:
    """Steps of 1 from -2 to 13: code = weight - 6 and zero point -6, the low nibble first."""
    weight = torch.tensor([[-2.0, 13.0, 0.0, 6.0, 0.0, 15.0, 1.0, 14.0]])
    stored = FORMAT.pack(round_to_nearest(weight, SCHEME))
    assert stored["zero_point"].tolist() == [[-6, -8]]
    assert stored["scale"].tolist() == [[1.0, 1.0]]
    assert stored["packed"].tolist() == [[0x78, 0x0A, 0x78, 0x69]]


def test_bytes_of_a_group_of_128() -> None:
    scheme = SCHEME.model_copy(update={"group_size": 128})
    specs = FORMAT.tensors((10, 256), scheme)
    stored = FORMAT.pack(round_to_nearest(draw(10, 256), scheme))
    assert {n: (tuple(t.shape), t.dtype) for n, t in stored.items()} == {
        n: tuple(s) for n, s in specs.items()
    }
    assert sum(t.numel() * t.element_size() for t in stored.values()) == 10 * 2 * (64 + 4 + 1)


@pytest.mark.parametrize("scale_out", [None, torch.tensor([0.05])])
def test_the_product_is_that_of_the_restored_weight(scale_out: Tensor | None) -> None:
    weight, x, bias = draw(5, 12), draw(2, 3, 12, seed=1), draw(5, seed=2)
    codes = round_to_nearest(weight, SCHEME)
    found = FORMAT.linear(FORMAT.pack(codes), x, None, bias, scale_out)
    expected = x @ restored(codes, SCHEME).T + bias
    if scale_out is None:
        assert torch.allclose(found, expected, atol=1e-5)
    else:
        assert found.dtype == torch.int8
        assert int((found - numerics.quantize(expected, scale_out)).abs().max()) <= 1


def test_groups_that_do_not_divide_a_row_are_refused() -> None:
    with pytest.raises(RecipeError, match="groups of 4 codes do not divide rows of 10"):
        FORMAT.tensors((3, 10), SCHEME)


def recipe(tmp_path: Path, rules: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"""
description: a test
source: this file
schemes:
  lopsided: {{bits: 4, granularity: per-group, group_size: 16, symmetric: false}}
  rows: {{bits: 8, granularity: per-channel, symmetric: false}}
  tensor: {{bits: 8}}
  token: {{bits: 8, granularity: per-token, dynamic: true}}
  shifted: {{bits: 8, symmetric: false}}
rules: [{rules}]
"""
    )
    return path


LOPSIDED = "{match: [layers.*.in_proj.weight], scheme: lopsided}"


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        (f"{LOPSIDED}, {{match: [layers.*.hidden], scheme: tensor}}", "no integer product with zero points"),
        (f"{LOPSIDED}, {{match: [layers.*.hidden], scheme: token}}", "no integer product with zero points"),
        (
            "{match: [layers.*.in_proj.weight], scheme: tensor, quantizer: clip}",
            "clip does not go with .*: it chooses a range for each row",
        ),
        ("{match: [embedding.weight], scheme: rows, quantizer: clip}", "no weight format"),
        ("{match: [layers.*.hidden], scheme: shifted}", "zero points are for weights"),
        ("{match: [layers.*.conv1d.weight], scheme: rows}", "no weight format"),
    ],
)
def test_what_it_does_not_go_with_is_refused_before_anything_runs(
    tmp_path: Path, rules: str, complaint: str
) -> None:
    with pytest.raises(RecipeError, match=complaint):
        ssmquant.plan(saved("mamba2"), recipe(tmp_path, rules))


@pytest.mark.parametrize("quantizer", ["gptq", "descent"])
def test_other_quantizers_choose_its_codes_nearer_to_the_output(quantizer: str) -> None:
    weight, x = draw(16, 64), draw(400, 64, seed=1) @ draw(64, 64, seed=2)
    moment = x.double().T @ x.double()

    def error(codes: Codes) -> float:
        return float(((restored(codes, SCHEME).double() - weight) @ x.double().T).square().sum())

    found = QUANTIZERS[quantizer].choose(weight, SCHEME, moment)
    assert found.zero_point is not None
    assert -8 <= int(found.codes.min()) <= int(found.codes.max()) <= 7
    assert error(found) < 0.8 * error(round_to_nearest(weight, SCHEME))


def test_float_activations_beside_int8_ones_are_let_through(tmp_path: Path) -> None:
    rules = f"{LOPSIDED}, {{match: [layers.*.y], scheme: tensor}}"
    plan = ssmquant.plan(saved("mamba2"), recipe(tmp_path, rules))
    assert plan.schemes["layers.0.in_proj.weight"].short() == "int4 per-group 16 asymmetric"
