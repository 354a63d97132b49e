"""The LLM.int8() recipe from end to end: its plan, what is refused, models with and without outliers."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import CONFIGS, WIDE, float_model, quantised, random_ids

import ssmquant
from ssmquant.errors import RecipeError
from ssmquant.planning import Plan
from ssmquant.recipe import Recipe, load_recipe
from ssmquant.resolution import resolve
from ssmquant.scheme import TensorScheme
from ssmquant.sites import SiteKind
from ssmquant.tolerance import error_ratio

IDS = random_ids(2, 48, seed=3)


def plan_of(recipe: str | Recipe, model: str) -> Plan:
    return resolve(load_recipe(recipe), CONFIGS[model], tied=True)


@pytest.mark.parametrize("model", WIDE.values())
def test_linear_layers_alone_are_quantised(model: str) -> None:
    plan = plan_of("llm-int8", model)
    layers = {row.site.name.split(".")[2] for row in plan.rows if row.scheme.outlier_threshold}
    assert layers == {"in_proj", "out_proj"} | ({"x_proj"} if model == "mamba-wide" else set())
    assert {row.scheme.outlier_threshold for row in plan.rows} == {None, 6.0}
    assert all(row.scheme.is_float for row in plan.rows if row.site.kind is not SiteKind.WEIGHT)


def without_outliers() -> Recipe:
    """Return the recipe with a threshold that no input reaches."""
    recipe = load_recipe("llm-int8")
    rows = recipe.schemes["rows"].model_copy(update={"outlier_threshold": 1000.0})
    return recipe.model_copy(update={"schemes": {**recipe.schemes, "rows": rows}})


@pytest.mark.parametrize("model", WIDE.values())
def test_a_model_without_outliers_is_the_dynamic_one(model: str) -> None:
    """Up to codes that the rounding of activations to float16 turns, some of which are in every layer."""
    exact, source = float_model(model).logits(IDS), float_model(model)
    dynamic = quantised(
        model,
        "w8a8-dynamic+keep=layers.*.dt_in+keep=layers.*.dt_proj.weight"
        if model == WIDE["mamba1"]
        else "w8a8-dynamic",
    ).logits(IDS)
    logits = ssmquant.quantize(source, without_outliers(), cache=False).logits(IDS)
    assert error_ratio(logits, dynamic) < 0.6 * error_ratio(dynamic, exact)
    with_outliers = quantised(model, "llm-int8").logits(IDS)
    assert error_ratio(with_outliers, exact) < 0.9 * error_ratio(dynamic, exact)


def test_outliers_of_a_channel_are_found_at_run_time() -> None:
    """One channel of hidden a hundred times the others: a scale a token drowns these, columns in float16 do not."""
    source = ssmquant.load(float_model("mamba2-wide").name)
    for block in source.shell.blocks:
        gain, weight = block.norm.weight, block.mixer.in_proj.weight
        with torch.no_grad():
            gain[7] *= 100.0
            weight[:, 7] /= 100.0
    exact = source.logits(IDS)
    errors = {
        name: error_ratio(ssmquant.quantize(source, name, cache=False).logits(IDS), exact)
        for name in ("llm-int8", "w8a8-dynamic")
    }
    assert errors["llm-int8"] < 0.3 * errors["w8a8-dynamic"]


@pytest.mark.parametrize(
    ("match", "scheme", "message"),
    [
        ("layers.*.hidden", "codes", "its layer quantises its own input and has to see the outliers"),
        ("layers.*.conv1d.weight", "rows", "is for linear layers; have a float, int8 here"),
        ("embedding.weight", "rows", "is for linear layers; have a float, int8, int4 here"),
        ("layers.*.y", "rows", "an outlier_threshold is for the weight whose layer reads this"),
        ("layers.*.z", "rows", "an outlier_threshold is for the weight whose layer reads this"),
    ],
)
def test_what_has_no_meaning_is_refused(match: str, scheme: str, message: str) -> None:
    schemes = load_recipe("llm-int8").schemes | {"codes": TensorScheme()}
    rules = [{"match": ["layers.*.in_proj.weight"], "scheme": "rows"}, {"match": [match], "scheme": scheme}]
    recipe = Recipe.model_validate(
        {"name": "mine", "description": "-", "source": "-", "schemes": schemes, "rules": rules}
    )
    with pytest.raises(RecipeError, match=message):
        plan_of(recipe, "mamba2")
