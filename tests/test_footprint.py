"""Sizes and shares against the folder that is saved, against the tensors, and against hand-made plans."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny_models import float_model, quantised

import ssmquant
from ssmquant.files import read_tensors
from ssmquant.footprint import bits_activation, bits_weight, bytes_at_rest, float_share, state_bytes
from ssmquant.modules.weights import Linear

MODEL = "mamba2-two-groups"
LAYERS, HEADS, HEADDIM, STATE = 3, 12, 8, 16


def test_bytes_are_those_of_the_saved_tensors(tmp_path: Path) -> None:
    model = quantised(MODEL, "quamba2-w8a8")
    model.save(tmp_path / "saved")
    assert bytes_at_rest(model) == sum(t.nbytes for t in read_tensors(tmp_path / "saved").values())


def test_state_bytes_fall_with_its_width_and_leave_out_the_tokens_between_roundings() -> None:
    elements = LAYERS * HEADS * HEADDIM * STATE
    sizes = {
        dtype: state_bytes(quantised(MODEL, f"quamba2-w8a8+ssm_state={dtype}"))
        for dtype in ("int8", "float16", "float32")
    }
    assert sizes["float16"] - sizes["int8"] == elements
    assert sizes["float32"] - sizes["float16"] == 2 * elements
    assert state_bytes(float_model(MODEL)) > sizes["float32"]  # the convolution's part is float too


def test_weight_bits_count_codes_and_scales() -> None:
    model = quantised(MODEL, "quamba2-w8a8")
    assert model.plan is not None
    stored = sum(tensor.nbytes for _, weight in model.shell.weights() for tensor in weight.stored.values())
    count = sum(weight.shape[0] * weight.shape[1] for _, weight in model.shell.weights())
    assert bits_weight(model.plan) == pytest.approx(8 * stored / count)
    assert 8 < bits_weight(model.plan) < 10
    assert bits_weight(ssmquant.plan(float_model(MODEL), "fp16")) == 16


@pytest.mark.parametrize(
    ("recipe", "bits", "share"),
    [
        ("fp16", 32, 1.0),
        ("quamba2-w8a8", 8, 0.0),
        ("quamba2-w8a8+keep=*_proj.weight+keep=lm_head.*", "mixed 8/32", 1.0),
        ("quamba2-w8a8+keep=layers.*.hidden", "mixed 8/32", None),
        ("quamba2-w8a8+head=float16", "mixed 8/32", None),
    ],
)
def test_activation_bits_and_share_of_float_work(recipe: str, bits: int | str, share: float | None) -> None:
    model = float_model(MODEL)
    plan = ssmquant.plan(model, recipe)
    assert bits_activation(plan) == bits
    mixer = model.shell.blocks[0].mixer
    sizes = {
        name: layer.shape[0] * layer.shape[1]
        for name, layer in (("in_proj", mixer.in_proj), ("out_proj", mixer.out_proj))
        if isinstance(layer, Linear)
    }
    head = model.vocab_size * model.config.hidden_size
    whole = LAYERS * sum(sizes.values()) + head
    in_floats = {"keep=layers.*.hidden": LAYERS * sizes["in_proj"], "head=float16": head}
    wanted = share if share is not None else in_floats[recipe.partition("+")[2]] / whole
    assert float_share(plan) == pytest.approx(wanted)


def test_a_weight_whose_input_is_a_float_is_multiplied_as_a_float() -> None:
    plan = ssmquant.plan(float_model(MODEL), "quamba2-w8a8+keep=layers.*.y")
    rows = {row.site.name: row for row in plan.rows}
    assert not rows["layers.0.out_proj.weight"].scheme.is_float
    out_proj = LAYERS * rows["layers.0.out_proj.weight"].site.numel
    in_proj = LAYERS * rows["layers.0.in_proj.weight"].site.numel
    head = rows["lm_head.weight"].site.numel
    assert float_share(plan) == pytest.approx(out_proj / (out_proj + in_proj + head))


@pytest.mark.parametrize(
    ("mixed", "bits", "share"),
    [
        ("", 32, 1.0),
        ("mixed: {outliers: 16, activation_bits: 8}", "mixed 8/32", 0.0),
        ("mixed: {outliers: 16, activation_bits: 4}", "mixed 4/8/32", 0.0),
    ],
)
def test_a_layer_with_outlier_channels_makes_its_own_codes(
    mixed: str, bits: int | str, share: float, tmp_path: Path
) -> None:
    recipe = tmp_path / "projections.yaml"
    recipe.write_text(f"""
description: projections alone
source: a test
schemes:
  codes: {{bits: 4, granularity: per-group, group_size: 16, {mixed}}}
rules:
  - {{match: ["layers.*_proj.weight"], scheme: codes, quantizer: {"mixed-rtn" if mixed else "rtn"}}}
""")
    plan = ssmquant.plan(float_model(MODEL), recipe)
    head = {row.site.name: row for row in plan.rows}["lm_head.weight"].site.numel
    layers = sum(row.site.numel for row in plan.rows if row.site.name.endswith("_proj.weight"))
    assert bits_activation(plan) == bits
    assert float_share(plan) == pytest.approx((head + share * layers) / (head + layers))
