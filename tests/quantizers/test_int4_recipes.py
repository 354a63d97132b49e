"""The recipes with GPTQ on the embedded model: nearer than round to nearest, half the bytes, the same after loading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_models import float_model, quantised, random_ids
from torch import Tensor

import ssmquant
from ssmquant.data import evaluation_documents, windows
from ssmquant.errors import RecipeError
from ssmquant.eval.metrics import compare
from ssmquant.eval.statistics import paired_test
from ssmquant.formats import Codes, restored
from ssmquant.quantizers import QUANTIZERS, gptq, round_to_nearest
from ssmquant.recipe import load_recipe
from ssmquant.scheme import TensorScheme

INT4 = ("quamba-w4a8", "quamba2-w4a8", "quamba2-w4a16", "gptq-w4a16")
# Int8 activations cost about five times what int8 weights do. They are left in float, so that the weights show.
FLOAT_ACTIVATIONS = "+ssm_state=float32+keep=layers.*.hidden+keep=layers.*.[zyxBC]*+keep=layers.*.dt"
#: A recipe, and the same by round to nearest.
PAIRS = {name: (name, f"{name}+quantizer=rtn") for name in INT4} | {
    "quamba2-w8a8-gptq": (
        f"quamba2-w8a8-gptq{FLOAT_ACTIVATIONS}",
        f"quamba2-w8a8{FLOAT_ACTIVATIONS}",
    )
}
SAMPLES, SEQLEN = 24, 96


class Layer(NamedTuple):
    """Squared error of one layer's output over the calibration text."""

    gptq: float
    nearest: float


def output_error(weight: Tensor, codes: Codes, scheme: TensorScheme, hessian: Tensor) -> float:
    """Return ``sum ||(Q - W) x||^2`` over the inputs of the Hessian."""
    difference = (restored(codes, scheme) - weight).double()
    return float(((difference @ hessian) * difference).sum())


@pytest.fixture(scope="module")
def quantise(
    tmp_path_factory: pytest.TempPathFactory, embedded_model: Path
) -> Iterator[Callable[[str], tuple[ssmquant.Model, list[Layer]]]]:
    """Quantise the embedded model once a recipe; with what each layer lost, where GPTQ chose its codes."""
    layers: list[Layer] = []

    def watched(weight: Tensor, scheme: TensorScheme, hessian: Tensor) -> Codes:
        found, nearest = gptq(weight, hessian, scheme), round_to_nearest(weight, scheme)
        layers.append(Layer(*(output_error(weight, c, scheme, hessian) for c in (found, nearest))))
        return found

    source = ssmquant.load(embedded_model)

    @cache
    def run(recipe: str) -> tuple[ssmquant.Model, list[Layer]]:
        layers.clear()
        model = ssmquant.quantize(source, recipe, samples=SAMPLES, seqlen=SEQLEN)
        return model, list(layers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSMQUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(QUANTIZERS, "gptq", replace(QUANTIZERS["gptq"], choose=watched))
        yield run


@pytest.fixture(scope="module")
def divergence(embedded_model: Path) -> Callable[[ssmquant.Model], Tensor]:
    """Return the mean KL divergence from the float model of each of twelve documents."""
    source = ssmquant.load(embedded_model)
    assert source.tokenizer is not None
    texts = evaluation_documents(None)
    ids = torch.cat([windows(d.texts, source.tokenizer, seqlen=96, samples=4, source=d.name) for d in texts])
    expected = source.logits(ids)
    return lambda model: compare(expected, model.logits(ids), ids).kl / (ids.shape[1] - 1)


@pytest.mark.parametrize("name", PAIRS)
def test_gptq_is_nearer_to_the_float_model_than_round_to_nearest(
    name: str,
    quantise: Callable[[str], tuple[ssmquant.Model, list[Layer]]],
    divergence: Callable[[ssmquant.Model], Tensor],
) -> None:
    found, nearest = (divergence(quantise(recipe)[0]).numpy() for recipe in PAIRS[name])
    test = paired_test(found, nearest)
    assert test.shown, test
    assert test.diff.value < 0, test
    if name in INT4:
        assert found.mean() < 0.75 * nearest.mean()


@pytest.mark.parametrize("name", PAIRS)
def test_every_layer_gives_a_nearer_output(
    name: str, quantise: Callable[[str], tuple[ssmquant.Model, list[Layer]]]
) -> None:
    _, layers = quantise(PAIRS[name][0])
    assert len(layers) == 16  # in_proj and out_proj of eight layers
    assert all(layer.gptq < 0.7 * layer.nearest for layer in layers), layers
    assert sum(layer.gptq for layer in layers) < 0.6 * sum(layer.nearest for layer in layers)


@pytest.mark.parametrize("name", INT4)
def test_saved_weights_are_half_of_int8_and_load_to_the_same_bits(
    name: str, quantise: Callable[[str], tuple[ssmquant.Model, list[Layer]]], tmp_path: Path
) -> None:
    model, _ = quantise(name)
    model.save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    for linear, (rows, columns) in {"in_proj": (1168, 256), "out_proj": (256, 512)}.items():
        for layer in range(8):
            mixer = f"backbone.layers.{layer}.mixer.{linear}"
            packed, scale = stored[f"{mixer}.packed"], stored[f"{mixer}.scale"]
            assert (packed.dtype, packed.shape) == (torch.uint8, (rows, columns // 2))
            assert (scale.dtype, scale.shape) == (torch.float32, (rows, columns // 128))
            assert f"{mixer}.codes" not in stored
    loaded = ssmquant.load(tmp_path / "out")
    ids = random_ids(2, 40, vocab=model.vocab_size)
    assert torch.equal(loaded.logits(ids), model.logits(ids))
    assert loaded.plan == model.plan


@pytest.mark.parametrize("recipe", ["quamba-w4a8", "gptq-w4a16"])
def test_mamba1_loads_to_the_same_bits(recipe: str, tmp_path: Path) -> None:
    model = quantised("mamba-wide", recipe)
    model.save(tmp_path / "out")
    ids = random_ids(2, 40)
    loaded = ssmquant.load(tmp_path / "out")
    assert torch.equal(loaded.logits(ids), model.logits(ids))
    assert not torch.equal(loaded.logits(ids), float_model("mamba-wide").logits(ids))


# Which weights are int4: the table of docs/int4.md.
PROJECTIONS = {"in_proj": "int4 per-group 128", "out_proj": "int4 per-group 128"}
W4A8 = PROJECTIONS | {
    "x_proj": "int8 per-channel",
    "dt_proj": "int8 per-channel",
    "conv1d": "int8 per-channel",
}
W4A16 = PROJECTIONS | {"x_proj": "float16", "dt_proj": "float16", "conv1d": "float32"}
HEADS = {"embedding": "int8 per-channel", "lm_head": "int8 per-channel"}


@pytest.mark.parametrize(
    ("recipe", "name", "expected"),
    [
        ("quamba-w4a8", "mamba-wide", W4A8),
        ("quamba-w4a8", "mamba2-wide", W4A8),
        ("quamba2-w4a8", "mamba2-wide", W4A8),
        ("gptq-w4a16", "mamba-wide", W4A16),
        ("gptq-w4a16", "mamba2-wide", W4A16),
        ("quamba2-w4a16", "mamba-wide", W4A16),
        ("quamba2-w4a16", "mamba2-wide", W4A16),
        ("quamba2-w8a8-gptq", "mamba2-wide", dict.fromkeys(W4A8, "int8 per-channel")),
    ],
)
def test_what_is_int4_and_what_is_not(recipe: str, name: str, expected: dict[str, str]) -> None:
    model, schemes = float_model(name), HEADS | expected
    choices = ["gptq", "rtn"] if "quantizer" in load_recipe(recipe).options else ["gptq"]
    for quantizer in choices:
        plan = ssmquant.plan(model, f"{recipe}+quantizer={quantizer}" if choices[1:] else recipe)
        weights = [row for row in plan.rows if row.site.name.endswith(".weight")]
        stages = [row.site.name.split(".")[-2] for row in weights]
        assert Counter(stages) == {
            stage: 1 if stage in HEADS else model.config.num_hidden_layers
            for stage in schemes
            if model.family == "mamba" or stage not in ("x_proj", "dt_proj")
        }
        for stage, row in zip(stages, weights, strict=True):
            assert row.scheme.short() == schemes[stage], row.site.name
            assert row.quantizer == (quantizer if stage in PROJECTIONS else "rtn"), row.site.name


def test_groups_that_do_not_fit_the_model_are_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match=r"in_proj\.weight .*groups of 128 codes do not divide rows of 48"):
        ssmquant.plan(float_model("mamba"), "quamba-w4a8")


GROUPED = ["gptq-w4a16", "quamba-w4a16", "quamba2-w4a16", "awq", "quamba-w4a8", "quamba2-w4a8", "quarot-w4a8"]


@pytest.mark.parametrize("recipe", [*GROUPED, "atom-w4a8"])
def test_the_group_size_is_an_option(recipe: str) -> None:
    model = float_model("mamba2-wide")
    for size in (16, 64):
        plan = ssmquant.plan(model, f"{recipe}+group_size={size}")
        assert {row.scheme.group_size for row in plan.rows} == {None, size}
        assert plan.weight_bytes() > ssmquant.plan(model, recipe).weight_bytes()  # more scales


@pytest.mark.parametrize("recipe", GROUPED)
def test_a_group_size_that_does_not_divide_is_refused_with_the_nearest_that_does(recipe: str) -> None:
    with pytest.raises(
        RecipeError, match=r"groups of 100 codes do not divide rows of 256; the nearest .* is 128$"
    ):
        ssmquant.plan(float_model("mamba2-wide"), f"{recipe}+group_size=100")


@pytest.mark.parametrize("size", ["0", "-4", "64.0", "many", ""])
def test_a_group_size_is_a_whole_number(size: str) -> None:
    with pytest.raises(RecipeError, match=rf"group_size='{size}' is not a whole number above 0"):
        load_recipe(f"gptq-w4a16+group_size={size}")


@pytest.mark.parametrize("name", ["mamba-wide", "mamba2-wide"])
@pytest.mark.parametrize("recipe", ["quamba-w4a8", "gptq-w4a16"])
def test_embedding_and_head_may_be_int4(recipe: str, name: str, tmp_path: Path) -> None:
    """One table where the model ties them, two where only one of them is int4; looked up and multiplied as stored."""
    ids = random_ids(2, 40)
    model = quantised(name, f"{recipe}+embedding=int4+head=int4")
    assert model.plan is not None and model.plan.tied
    table = model.shell.embedding
    exact = float_model(name).shell.embedding.dequantize()
    assert torch.equal(table(ids), table.dequantize()[ids])
    found = restored(round_to_nearest(exact, table.scheme), table.scheme)
    assert torch.equal(table.dequantize(), found)
    eight = quantised(name, recipe)
    assert eight.plan is not None
    # 4 bits, and 256 / 128 scales of 4 bytes in place of one.
    assert eight.plan.weight_bytes() - model.plan.weight_bytes() == 257 * (128 - 4)
    model.save(tmp_path / "out")
    assert torch.equal(ssmquant.load(tmp_path / "out").logits(ids), model.logits(ids))
    assert not torch.equal(model.logits(ids), eight.logits(ids))
    apart = ssmquant.plan(float_model(name), f"{recipe}+head=int4")
    assert not apart.tied
    assert apart.schemes["lm_head.weight"].bits == 4
    assert apart.schemes["embedding.weight"].bits == 8
