"""SmoothQuant: the formula of the paper, the function kept, what is smoothed and what is not, and its effect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_models import CONFIGS, MAMBA1, MAMBA2, float_model, quantised, random_ids, saved
from torch import Tensor

import ssmquant
from ssmquant.calibrate import calibrate
from ssmquant.data import evaluation_documents, windows
from ssmquant.errors import RecipeError
from ssmquant.eval.metrics import compare
from ssmquant.families import Shell, transformers_model
from ssmquant.scheme import Granularity, TensorScheme
from ssmquant.transforms import TRANSFORMS, Context
from ssmquant.transforms.smooth import pairs, smoothing_scale

TOKEN = TensorScheme(granularity=Granularity.PER_TOKEN, dynamic=True)


def fresh(name: str) -> Shell:
    """Return a tiny model in float64 that a test may change."""
    shell = ssmquant.load(saved(name)).shell
    shell.model.double()
    return shell


def smooth(shell: Shell, schemes: Mapping[str, TensorScheme], alpha: float = 0.5) -> None:
    step = TRANSFORMS["smooth"]
    statistics = calibrate(shell, random_ids(4, 40, seed=3), step.needs(shell))
    step.apply(shell, Context(schemes, statistics, {"alpha": alpha}))


def logits(shell: Shell, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = transformers_model(shell)(ids).logits
    return found


def everywhere(shell: Shell) -> dict[str, TensorScheme]:
    return {pair.input: TOKEN for pair in pairs(shell)}


def test_the_scale_is_that_of_equation_4() -> None:
    random = np.random.default_rng(0)
    x, w = random.normal(size=(30, 5)) * [1, 10, 0.1, 100, 1], random.normal(size=(7, 5))
    expected = [np.abs(x[:, j]).max() ** 0.7 / np.abs(w[:, j]).max() ** (1 - 0.7) for j in range(5)]
    found = smoothing_scale(torch.from_numpy(x).abs().amax(dim=0), torch.from_numpy(w), 0.7)
    assert np.allclose(found, expected, rtol=1e-12)


def test_a_channel_without_activations_is_left_and_one_without_weights_is_finite() -> None:
    absmax = torch.tensor([0.0, 2.0, 2.0])
    weight = torch.tensor([[3.0, 0.0, 2.0], [1.0, 0.0, -8.0]])
    dead, unread, usual = smoothing_scale(absmax, weight, 0.5).tolist()
    assert dead == 1.0
    assert 1.0 < unread < 1e3
    assert usual == pytest.approx(0.5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("alpha", [0.5, 0.85])
def test_the_function_is_kept(name: str, alpha: float) -> None:
    shell, ids = fresh(name), random_ids(2, 33)
    before = logits(shell, ids)
    weight = shell.blocks[0].mixer.in_proj.weight.clone()
    smooth(shell, everywhere(shell), alpha)
    assert not torch.allclose(shell.blocks[0].mixer.in_proj.weight, weight, rtol=0.05)
    assert float((logits(shell, ids) - before).abs().max()) <= 1e-9


@pytest.mark.parametrize("name", ["mamba2-two-groups", "mamba"])
def test_at_one_half_inputs_and_columns_reach_equally_far(name: str) -> None:
    """The paper's reason for the formula: at alpha = 1/2 both maxima are their geometric mean (section 4)."""
    shell = fresh(name)
    smooth(shell, everywhere(shell))
    needs = TRANSFORMS["smooth"].needs(shell)
    again = calibrate(shell, random_ids(4, 40, seed=3), needs)
    for pair in pairs(shell):
        columns = pair.linear.weight.detach().abs().amax(dim=0)
        assert torch.allclose(again.absmax(pair.input).double(), columns, rtol=1e-4)


@pytest.mark.parametrize("name", [*MAMBA1[:1], *MAMBA2[:1]])
def test_which_layers_have_a_norm_before_them(name: str) -> None:
    found = {pair.weight for pair in pairs(float_model(name).shell)}
    layers = ["in_proj"] if name in MAMBA1 else ["in_proj", "out_proj"]
    assert found == {f"layers.{i}.{layer}.weight" for i in range(3) for layer in layers}


def test_an_activation_that_stays_float_is_not_smoothed() -> None:
    shell = fresh("mamba2")
    schemes = everywhere(shell)
    del schemes["layers.1.hidden"]
    before = [block.mixer.in_proj.weight.clone() for block in shell.blocks]
    smooth(shell, schemes)
    same = [torch.equal(b.mixer.in_proj.weight, w) for b, w in zip(shell.blocks, before, strict=True)]
    assert same == [False, True, False]


def test_the_source_model_is_not_changed() -> None:
    model = float_model("mamba2")
    before = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    quantised("mamba2", "smoothquant")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.module.state_dict().items())


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("name", ["mamba-untied-biased", "falcon_mamba", "mamba2-two-groups"])
def test_what_the_recipe_plans(name: str, activations: str) -> None:
    plan = ssmquant.plan(saved(name), f"smoothquant+alpha=0.7+activations={activations}")
    assert plan.transforms == ("smooth",)
    assert plan.params == {"smooth": {"alpha": 0.7}}
    schemes = {row.site.name: row.scheme.short() for row in plan.rows}
    linears = [n for n in schemes if n.endswith("_proj.weight")]
    inputs = ["hidden", "y", *(["x", "dt_in"] if name in MAMBA1 else [])]
    wanted = "int8 per-token dynamic" if activations == "dynamic" else "int8 per-tensor"
    assert {schemes[n] for n in linears} == {"int8 per-channel"}
    assert {schemes[f"layers.0.{site}"] for site in inputs} == {wanted}
    others = {s for n, s in schemes.items() if n.startswith("layers.0.") and s.startswith("int8")}
    assert others == {"int8 per-channel", wanted}
    assert schemes["layers.0.conv1d.weight"] == schemes["layers.0.state"] == "float32"


@pytest.mark.parametrize("name", ["mamba", "mamba2-two-groups"])
@pytest.mark.parametrize("recipe", ["smoothquant", "smoothquant+activations=static+head=int8+embedding=int8"])
def test_through_a_folder_bit_for_bit(tmp_path: Path, name: str, recipe: str) -> None:
    model, ids = quantised(name, recipe), random_ids(2, 20)
    model.save(tmp_path / "out")
    loaded = ssmquant.load(tmp_path / "out")
    assert loaded.plan == model.plan
    assert torch.equal(loaded.logits(ids), model.logits(ids))
    codes = loaded.module.state_dict()["backbone.layers.0.mixer.in_proj.codes"]
    assert codes.dtype == torch.int8


@pytest.mark.parametrize(
    ("step", "complaint"),
    [
        ("{name: smooth}", r"takes the params \[alpha\], the recipe gives \[\]"),
        ("{name: smooth, params: {alhpa: 0.5}}", r"the recipe gives \[alhpa\]"),
        ("{name: smooth, params: {alpha: 1.5}}", "alpha is 1.5; it must be from 0 to 1"),
        ("{name: smooth, params: {alpha: .nan}}", "alpha is nan"),
        ("{name: fuse_norm, params: {alpha: 0.5}}", r"takes the params \[\], the recipe gives \[alpha\]"),
    ],
)
def test_numbers_of_a_transform_are_checked_before_anything_runs(
    tmp_path: Path, step: str, complaint: str
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"description: a test\nsource: this file\ntransforms: [{step}]\n")
    with pytest.raises(RecipeError, match=complaint):
        ssmquant.plan(saved("mamba2"), recipe)


def test_it_is_closer_than_the_same_without_smoothing(embedded_model: Path) -> None:
    """On the embedded model, with little calibration: less divergence in every document (measured: half of it)."""
    model = ssmquant.load(embedded_model)
    (english,) = (d for d in evaluation_documents(None) if d.name == "en")
    ids = windows(english.texts, model.tokenizer, seqlen=128, samples=8, source="en")
    expected = model.logits(ids)
    plain, smoothed = (
        compare(expected, ssmquant.quantize(model, r, samples=6, seqlen=128, cache=False).logits(ids), ids).kl
        for r in ("w8a8-dynamic", "smoothquant")
    )
    assert bool((smoothed < plain).all())
    assert float(smoothed.sum()) < 0.75 * float(plain.sum())
