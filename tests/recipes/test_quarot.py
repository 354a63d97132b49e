"""The QuaRot recipes: what is rotated, what is found at run time, and that it is the same model."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import CONFIGS, WIDE, float_model, quantised, random_ids

import ssmquant
from ssmquant.planning import Plan
from ssmquant.recipe import load_recipe
from ssmquant.resolution import resolve
from ssmquant.sites import SiteKind
from ssmquant.tolerance import error_ratio

IDS = random_ids(2, 48, seed=3)
RECIPES = {"quarot-w8a8": (8, 8), "quarot-w4a8": (4, 8), "quarot-w4a4": (4, 4)}


def plan_of(recipe: str, model: str) -> Plan:
    return resolve(load_recipe(recipe), CONFIGS[model], tied=True)


@pytest.mark.parametrize("model", WIDE.values())
@pytest.mark.parametrize("recipe", RECIPES)
def test_projections_and_their_inputs_have_the_bits_of_the_name(recipe: str, model: str) -> None:
    plan, (weight, activation) = plan_of(recipe, model), RECIPES[recipe]
    assert plan.transforms == ("fuse_norm", "rotate_residual", "hadamard_out")
    assert not plan.tied  # the rotation unties the head
    for projection, read in (("in_proj", "hidden"), ("out_proj", "y")):
        assert plan.schemes[f"layers.0.{projection}.weight"].bits == weight
        assert plan.schemes[f"layers.0.{read}"].bits == activation
    active = [row for row in plan.rows if row.site.kind is SiteKind.ACTIVATION and not row.scheme.is_float]
    assert active and all(row.scheme.dynamic for row in active)


@pytest.mark.parametrize("model", WIDE.values())
def test_no_text_is_needed_to_round(model: str) -> None:
    """Scales are found at run time; only GPTQ looks at text."""
    source = float_model(model)
    made = ssmquant.quantize(ssmquant.Model(source.name, source.shell, None), "quarot-w8a8", cache=False)
    assert made.provenance == {}
    assert torch.equal(made.logits(IDS), quantised(model, "quarot-w8a8").logits(IDS))


def test_a_channel_that_sticks_out_is_spread_over_all() -> None:
    """What the rotation is for: one channel of the residual stream that takes the steps of its whole token."""
    source = ssmquant.load(float_model("mamba2-wide").name)
    with torch.no_grad():
        source.shell.embedding.weight[:, 11] += 40.0
    exact = source.logits(IDS)
    errors = {
        recipe: error_ratio(ssmquant.quantize(source, recipe, cache=False).logits(IDS), exact)
        for recipe in ("quarot-w8a8+embedding=float16+head=float16", "w8a8-dynamic")
    }
    rotated, plain = errors.values()
    assert rotated < 0.5 * plain
