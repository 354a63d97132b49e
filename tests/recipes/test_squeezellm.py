"""The SqueezeLLM recipe from end to end: its plans, what is refused, quality, and what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_models import CONFIGS, PARITY, float_model, quantised, random_ids, reference, saved
from torch import Tensor

import ssmquant
from ssmquant.data import evaluation_documents, windows
from ssmquant.errors import RecipeError
from ssmquant.model import Model
from ssmquant.planning import Plan
from ssmquant.recipe import Recipe, load_recipe
from ssmquant.resolution import resolve
from ssmquant.scheme import TensorScheme
from ssmquant.tolerance import error_ratio

TINY = ["mamba", "falcon_mamba-untied-biased", "mamba2-two-groups"]


def plan_of(recipe: str | Recipe, model: str) -> Plan:
    return resolve(load_recipe(recipe), CONFIGS[model], tied=True)


@pytest.mark.parametrize("model", ["mamba-wide", "mamba2-wide"])
def test_projections_are_tables_and_all_else_is_as_in_gptq_w4a16(model: str) -> None:
    """So that a comparison of the two changes one thing: what happens at the projections."""
    ours, other = plan_of("squeezellm", model), plan_of("gptq-w4a16", model)
    tables = {row.site.name for row in ours.rows if row.scheme.kind == "lut"}
    assert tables == {row.site.name for row in other.rows if row.quantizer == "gptq"}
    assert all(row.quantizer == "kmeans" for row in ours.rows if row.site.name in tables)
    left = [row.site.name for row in ours.rows if row.site.name not in tables]
    assert {n: ours.schemes.get(n) for n in left} == {n: other.schemes.get(n) for n in left}


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize(("sparse", "share"), [("0", None), ("0.05", 0.05), ("0.45", 0.45)])
def test_options_choose_bits_and_sparse_part(bits: int, sparse: str, share: float | None) -> None:
    plan = plan_of(f"squeezellm+bits={bits}+sparse={sparse}", "mamba2")
    scheme = plan.schemes["layers.1.out_proj.weight"]
    assert (scheme.kind, scheme.bits, scheme.sparse) == ("lut", bits, share)


def changed(scheme: str, quantizer: str, match: str) -> Recipe:
    schemes = load_recipe("squeezellm").schemes | {
        "group": TensorScheme(bits=4, granularity="per-group", group_size=8)
    }
    rule = {"match": [match], "scheme": scheme, "quantizer": quantizer}
    return Recipe.model_validate(
        {"name": "changed", "description": "", "source": "", "schemes": schemes, "rules": [rule]}
    )


@pytest.mark.parametrize(
    ("scheme", "quantizer", "match", "found"),
    [
        (
            "lut4",
            "rtn",
            "layers.*.in_proj.weight",
            "rtn has no codes for 'lut4 per-channel'; use one of kmeans",
        ),
        ("lut4", "gptq", "layers.*.in_proj.weight", "gptq has no codes for 'lut4 per-channel'"),
        (
            "group",
            "kmeans",
            "layers.*.in_proj.weight",
            "kmeans has no codes for 'int4 per-group 8'; use one of rtn",
        ),
        ("lut4", "kmeans", "embedding.weight", "is for linear layers"),
        ("lut4", "kmeans", "layers.*.conv1d.weight", "is for linear layers"),
        ("lut4", "rtn", "layers.*.hidden", "lut4"),
        ("lut4", "rtn", "layers.*.state", "lut4"),
    ],
)
def test_tables_are_for_linear_layers_and_kmeans_for_tables(
    scheme: str, quantizer: str, match: str, found: str
) -> None:
    with pytest.raises(RecipeError, match=found):
        plan_of(changed(scheme, quantizer, match), "mamba2")


@pytest.mark.parametrize("model", TINY)
def test_the_quantised_model_is_transformers_model_with_the_looked_up_weights(model: str) -> None:
    q, exact = quantised(model, "squeezellm"), reference(saved(model))
    paths = {module: path for path, module in q.module.named_modules()}
    with torch.no_grad():
        for _, weight in q.shell.weights():
            parameter = exact.get_parameter(f"{paths[weight].removesuffix('.linear')}.weight")
            parameter.copy_(weight.dequantize().view(parameter.shape))
        ids = random_ids(2, 40, seed=5)
        assert error_ratio(q.logits(ids), exact(ids).logits) < PARITY


@pytest.mark.parametrize("model", TINY)
def test_more_bits_and_a_larger_sparse_part_are_closer(model: str) -> None:
    ids = random_ids(2, 40, seed=5)
    exact = float_model(model).logits(ids)
    options = ("bits=3+sparse=0", "bits=3", "bits=4")
    errors = [error_ratio(quantised(model, f"squeezellm+{o}").logits(ids), exact) for o in options]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("model", TINY)
@pytest.mark.parametrize("recipe", ["squeezellm", "squeezellm+bits=3+sparse=0"])
def test_what_is_loaded_is_what_was_saved(model: str, recipe: str, tmp_path: Path) -> None:
    q, ids = quantised(model, recipe), random_ids(2, 33)
    q.save(tmp_path / "q")
    loaded = ssmquant.load(tmp_path / "q")
    assert loaded.plan == q.plan
    assert torch.equal(loaded.logits(ids), q.logits(ids))
    assert q.plan and stored_bytes(loaded) == stored_bytes(q) == q.plan.weight_bytes()


def stored_bytes(model: Model) -> int:
    """Return the bytes of all weights as they are in memory and in the file."""
    tensors = (tensor for _, weight in model.shell.weights() for tensor in weight.stored.values())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.fixture(scope="module")
def embedded(embedded_model: Path) -> Model:
    return ssmquant.load(embedded_model)


def kl(model: Model, recipe: str) -> Tensor:
    """Return the mean divergence of a recipe's model from the float one on each of some windows."""
    q = ssmquant.quantize(model, recipe, samples=16, seqlen=128)
    texts = evaluation_documents(None)
    ids = torch.cat(
        [windows(d.texts, model.tokenizer, seqlen=256, samples=4, source=d.name) for d in texts]  # type: ignore[arg-type]
    )
    exact, other = (torch.log_softmax(m.logits(ids), dim=-1) for m in (model, q))
    return (exact.exp() * (exact - other)).sum(dim=-1).mean(dim=1)


def test_tables_beat_a_uniform_grid_and_a_sparse_part_beats_none(
    embedded: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paired over windows: the mean difference is several of its standard errors."""
    monkeypatch.setenv("SSMQUANT_CACHE", str(tmp_path))
    grid, dense, sparse = (
        kl(embedded, recipe) for recipe in ("gptq-w4a16+quantizer=rtn", "squeezellm+sparse=0", "squeezellm")
    )
    for better, worse in ((dense, grid), (sparse, dense)):
        gain = worse - better
        assert gain.mean() > 2 * gain.std() / len(gain) ** 0.5
    assert sparse.mean() < 0.5 * grid.mean()
