"""The Atom recipes from end to end: plans, what is refused, quality, and what is stored."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny_models import CONFIGS, float_model, quantised, random_ids

import ssmquant
from ssmquant.cli.eval import evaluation_windows
from ssmquant.errors import RecipeError
from ssmquant.eval.evaluate import evaluate
from ssmquant.planning import Plan
from ssmquant.recipe import Recipe, load_recipe
from ssmquant.resolution import resolve
from ssmquant.scheme import TensorScheme
from ssmquant.sites import SiteKind
from ssmquant.tolerance import error_ratio

RECIPES = ["atom-w4a4", "atom-w4a8"]
WIDE = ["mamba-wide", "mamba2-wide"]


def plan_of(recipe: str | Recipe, model: str) -> Plan:
    return resolve(load_recipe(recipe), CONFIGS[model], tied=True)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", WIDE)
def test_projections_are_mixed_and_all_else_is_as_in_gptq_w4a16(recipe: str, model: str) -> None:
    """So that a comparison of the two changes one thing: what happens at the projections."""
    atom, other = plan_of(recipe, model), plan_of("gptq-w4a16", model)
    mixed = {row.site.name for row in atom.rows if row.scheme.mixed}
    projections = ("in_proj.weight", "x_proj.weight", "out_proj.weight")
    assert mixed == {row.site.name for row in atom.rows if row.site.name.endswith(projections)}
    assert all(row.quantizer == "mixed-gptq" for row in atom.rows if row.scheme.mixed)
    left = [row.site.name for row in atom.rows if not row.scheme.mixed]
    assert {n: atom.schemes.get(n) for n in left} == {n: other.schemes.get(n) for n in left}
    assert all(row.scheme.is_float for row in atom.rows if row.site.kind is not SiteKind.WEIGHT)


def test_the_papers_numbers() -> None:
    scheme = load_recipe("atom-w4a4").schemes["mixed"]
    assert scheme.mixed
    assert (scheme.bits, scheme.group_size, scheme.mixed.outliers, scheme.mixed.activation_bits) == (
        4,
        128,
        128,
        4,
    )
    assert (scheme.mixed.weight_clip, scheme.mixed.activation_clip) == (0.85, 0.9)


def test_a_model_that_is_too_narrow_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        RecipeError,
        match=r"layers\.0\.in_proj.*128 outliers leave of 48; layers of 48 input channels stay float",
    ):
        plan_of("atom-w4a4", "mamba2")


def changed(
    scheme: str = "mixed", quantizer: str = "mixed-rtn", match: str = "layers.*.in_proj.weight"
) -> Recipe:
    """Return a recipe of one rule; a rule for activations comes after a sound one for the weight that reads them."""
    schemes = load_recipe("atom-w4a4").schemes | {"codes": TensorScheme()}
    rules = [{"match": [match], "scheme": scheme, "quantizer": quantizer}]
    if match == "layers.*.hidden":
        rules = [{"match": ["layers.*.in_proj.weight"], "scheme": "mixed", "quantizer": "mixed-rtn"}, *rules]
    return Recipe.model_validate(
        {"name": "mine", "description": "-", "source": "-", "schemes": schemes, "rules": rules}
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantizer": "rtn"}, r"rtn has no codes for 'int4 .*\+ 128 int8.*use one of mixed-rtn, mixed-gptq"),
        ({"quantizer": "gptq"}, "gptq has no codes for .*use one of mixed-rtn, mixed-gptq"),
        ({"scheme": "row"}, "mixed-rtn has no codes for 'int8 per-channel'; use one of rtn, gptq"),
        ({"match": "embedding.weight"}, "embedding.weight .*is for linear layers"),
        ({"match": "layers.*.hidden", "scheme": "mixed", "quantizer": "rtn"}, "activations are float32 or int8"),
        ({"match": "layers.*.hidden", "scheme": "codes", "quantizer": "rtn"}, "its layer quantises its own input"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_is_refused_before_anything_runs(changes: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_of(changed(**changes), "mamba2-wide")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("model", WIDE)
def test_save_and_load_keep_every_bit_and_the_plan_knows_the_bytes(
    recipe: str, model: str, tmp_path: Path
) -> None:
    saved = quantised(model, recipe)
    saved.save(tmp_path / "out")
    loaded = ssmquant.load(tmp_path / "out")
    ids = random_ids(2, 24)
    assert torch.equal(loaded.logits(ids), saved.logits(ids))
    assert loaded.plan is not None and saved.plan is not None
    assert loaded.plan.schemes == saved.plan.schemes
    stored = sum(t.nbytes for _, weight in loaded.shell.weights() for t in weight.stored.values())
    assert stored == saved.plan.weight_bytes()


@pytest.mark.parametrize("model", WIDE)
def test_eight_bits_of_activation_are_closer_than_four(model: str) -> None:
    """Random weights have no outliers to speak of: this is about the arithmetic, not about quality."""
    ids = random_ids(4, 32)
    exact = float_model(model).logits(ids)
    four, eight = (error_ratio(quantised(model, recipe).logits(ids), exact) for recipe in RECIPES)
    assert 0.0 < eight < 0.8 * four
    assert four < 0.5


def test_quality_on_a_trained_model(embedded_model: Path) -> None:
    """Divergence from the float model in every domain: 8-bit activations well below 4-bit ones, and both small."""
    model = ssmquant.load(embedded_model)
    windows = evaluation_windows(model, "builtin", 2, 128)
    candidates = [
        replace(ssmquant.quantize(model, recipe, samples=4, seqlen=128, cache=False), name=recipe)
        for recipe in RECIPES
    ]
    four, eight = (scores.domains for scores in evaluate(model, candidates, windows).models)
    assert four.keys() == windows.keys()
    for domain in windows:
        found = [scores[domain].divergence for scores in (eight, four)]
        kl_eight, kl_four = (float(divergence.kl.mean()) for divergence in found if divergence)
        assert 0.0 < kl_eight < 0.6 * kl_four, domain
        assert kl_four < 0.1, domain
