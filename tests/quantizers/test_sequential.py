"""GPTQ in sequence: every layer's Hessian is that of the quantised layers before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.tiny_models import float_model, quantised, random_ids, texts
from torch import Tensor

import ssmquant
from ssmquant.data import calibration_windows, evaluation_documents, windows
from ssmquant.errors import DataError, SsmquantError
from ssmquant.eval.metrics import compare
from ssmquant.families import Shell
from ssmquant.formats import Codes
from ssmquant.modules.weights import Linear
from ssmquant.quantizers import QUANTIZERS, gptq
from ssmquant.runtime.engine import Engine
from ssmquant.scheme import TensorScheme
from ssmquant.sequential import Passage, quantise_in_sequence

#: Float projections, and the rest in int8.
SOME = "quamba-w8a8+keep=layers.*.*_proj.weight+head=float16"
IDS = random_ids(2, 48, seed=3)
RECIPES = {
    "mamba-wide": "quamba-w4a8+quantizer=gptq-sequential",
    "mamba2-wide": "quamba2-w4a8+quantizer=gptq-sequential",
}


def text() -> Tensor:
    return calibration_windows(str(texts()), float_model("mamba2-wide").tokenizer, samples=8, seqlen=64)


def observed(shell: Shell, name: str) -> Tensor:
    """Return the second moment of what a linear layer reads when the whole text runs through the whole model."""
    rows: list[Tensor] = []
    layer = dict(shell.weights())[name]
    hook = layer.register_forward_pre_hook(
        lambda _module, inputs: rows.append(inputs[0].dequantize().flatten(0, -2))
    )
    for window in text():
        hidden, _ = Engine(shell).hidden(window[None], None)
        shell.head(hidden)
    hook.remove()
    x = torch.cat(rows).double()
    return x.T @ x


@pytest.mark.parametrize("model", RECIPES)
def test_every_hessian_is_that_of_the_quantised_layers_before(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The final model, in which later layers have changed too, gives an earlier layer the same inputs."""
    seen: list[Tensor] = []

    def choose(weight: Tensor, scheme: TensorScheme, hessian: Tensor) -> Codes:
        seen.append(hessian)
        return gptq(weight, hessian, scheme)

    monkeypatch.setitem(QUANTIZERS, "gptq-sequential", replace(QUANTIZERS["gptq-sequential"], choose=choose))
    made = ssmquant.quantize(
        float_model(model), RECIPES[model], calibration=str(texts()), samples=8, seqlen=64, cache=False
    )
    assert made.plan is not None
    rows = [row for row in made.plan.weights() if row.quantizer == "gptq-sequential"]
    assert len(rows) == len(seen) == 2
    for row, hessian in zip(rows, seen, strict=True):
        site = row.site.name
        exact, parallel = observed(made.shell, site), observed(float_model(model).shell, site)
        assert (hessian - exact).norm() < 1e-5 * exact.norm(), site
        assert (hessian - parallel).norm() > 1e-3 * exact.norm(), site


def test_second_moments_of_shards_add_up() -> None:
    shell = quantised("mamba2", SOME).shell
    layer = shell.blocks[2].mixer.out_proj
    whole = Passage(shell, text()).hessian(2, layer)
    shards = [Passage(shell, part).hessian(2, layer) for part in (text()[:3], text()[3:])]
    for merged in (shards[0].merge(shards[1]), shards[1].merge(shards[0])):
        assert torch.equal(merged.value, whole.value)


def test_blocks_come_in_order() -> None:
    shell = quantised("mamba2", SOME).shell
    passage = Passage(shell, text())
    passage.hessian(2, shell.blocks[2].mixer.out_proj)
    with pytest.raises(SsmquantError, match="the text has passed block 0 already; ask for blocks in order"):
        passage.hessian(0, shell.blocks[0].mixer.out_proj)


@pytest.mark.parametrize("name", ["lm_head.weight", "layers.2.dt_proj.weight"])
def test_a_layer_is_left_as_it_was(name: str) -> None:
    shell = quantised("mamba-untied-biased", SOME).shell
    layer, logits = dict(shell.weights())[name], quantised("mamba-untied-biased", SOME).logits(IDS)
    assert isinstance(layer, Linear)
    found = Passage(shell, text()).hessian(2 if name.startswith("layers") else 3, layer)
    assert found.value.shape == (layer.shape[1], layer.shape[1])
    assert float(found.value.trace()) > 0
    assert torch.equal(quantised("mamba-untied-biased", SOME).logits(IDS), logits)
    if name == "lm_head.weight":
        exact = observed(shell, name)
        assert (found.value - exact).norm() < 1e-5 * exact.norm()


def test_no_text_is_refused() -> None:
    shell = quantised("mamba2", SOME).shell
    with pytest.raises(DataError, match="at least one sequence"):
        quantise_in_sequence(shell, [], text()[:0])


@pytest.mark.parametrize("model", RECIPES)
def test_it_is_stored_and_loaded_as_any_other(model: str, tmp_path: Path) -> None:
    made = quantised(model, RECIPES[model])
    parallel = quantised(model, RECIPES[model].removesuffix("-sequential"))
    tensors, others = made.module.state_dict(), parallel.module.state_dict()
    assert {name: (t.shape, t.dtype) for name, t in tensors.items()} == {
        name: (t.shape, t.dtype) for name, t in others.items()
    }
    changed = {name for name in tensors if not torch.equal(tensors[name], others[name])}
    assert {name.split(".")[-2] for name in changed} <= {"in_proj", "out_proj"}
    assert any("out_proj.packed" in name for name in changed)
    made.save(tmp_path / "out")
    assert torch.equal(ssmquant.load(tmp_path / "out").logits(IDS), made.logits(IDS))


def test_text_is_needed_and_nothing_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSMQUANT_CACHE", str(tmp_path))
    recipe = "gptq-w4a16+quantizer=gptq-sequential"
    made = ssmquant.quantize(
        float_model("mamba2-wide"), recipe, calibration=str(texts()), samples=8, seqlen=64
    )
    assert made.provenance["samples"] == 8
    assert not list(tmp_path.iterdir())


def test_it_is_no_further_from_the_float_model_than_round_to_nearest(embedded_model: Path) -> None:
    source = ssmquant.load(embedded_model)
    texts = evaluation_documents(None)
    ids = torch.cat([windows(d.texts, source.tokenizer, seqlen=96, samples=4, source=d.name) for d in texts])
    expected = source.logits(ids)
    found = {}
    for quantizer in ("gptq-sequential", "gptq", "rtn"):
        recipe = f"gptq-w4a16+quantizer={quantizer}"
        made = ssmquant.quantize(source, recipe, samples=24, seqlen=96, cache=False)
        found[quantizer] = float(compare(expected, made.logits(ids), ids).kl.mean())
    assert found["gptq-sequential"] < 0.75 * found["rtn"]
    assert found["gptq-sequential"] < 1.1 * found["gptq"]
