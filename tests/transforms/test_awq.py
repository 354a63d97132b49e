"""AWQ: the search against one written out on tokens, the function kept, the recipe's plan, and its effect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_models import CONFIGS, float_model, quantised, random_ids, saved
from torch import Tensor

import ssmquant
from ssmquant.calibrate import calibrate
from ssmquant.data import evaluation_documents, windows
from ssmquant.eval.metrics import compare
from ssmquant.families import Shell, transformers_model
from ssmquant.formats import restored
from ssmquant.quantizers import round_to_nearest
from ssmquant.scheme import Granularity, TensorScheme
from ssmquant.transforms import TRANSFORMS, Context
from ssmquant.transforms.awq import candidate, search
from ssmquant.transforms.smooth import pairs

GROUPS = TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=16, symmetric=False)


def fresh(name: str) -> Shell:
    """Return a tiny model in float64 that a test may change."""
    shell = ssmquant.load(saved(name)).shell
    shell.model.double()
    return shell


def awq(shell: Shell, schemes: Mapping[str, TensorScheme]) -> None:
    step = TRANSFORMS["awq"]
    statistics = calibrate(shell, random_ids(4, 40, seed=3), step.needs(shell))
    step.apply(shell, Context(schemes, statistics))


def logits(shell: Shell, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = transformers_model(shell)(ids).logits
    return found


def layer(rows: int = 40, columns: int = 64, tokens: int = 200) -> tuple[Tensor, Tensor]:
    """Return a weight, and inputs of which a few channels are large and all go together a little."""
    random = torch.Generator().manual_seed(0)
    mixing = torch.eye(columns) + 0.2 * torch.randn(columns, columns, generator=random)
    sizes = torch.randn(columns, generator=random).exp() ** 1.5
    return torch.randn(rows, columns, generator=random), torch.randn(
        tokens, columns, generator=random
    ) @ mixing * sizes


def error_on_tokens(weight: Tensor, x: Tensor, factor: Tensor) -> float:
    """Return the mean squared error of the layer's output with a scaled, rounded weight and a scaled input."""
    weight, x = weight.double(), x.double()
    rounded = restored(round_to_nearest((weight * factor).float(), GROUPS), GROUPS).double()
    return float(((x / factor) @ rounded.T - x @ weight.T).square().mean())


def test_a_candidate_is_the_mean_magnitude_to_the_alpha_balanced_around_one() -> None:
    mean = torch.tensor([0.25, 1.0, 16.0], dtype=torch.float64)
    assert candidate(mean, 0.0).tolist() == [1.0, 1.0, 1.0]
    assert candidate(mean, 0.5).tolist() == pytest.approx([0.5 / 2**0.5, 1.0 / 2**0.5, 4.0 / 2**0.5])


def test_silent_channels_leave_candidates_finite() -> None:
    factor = candidate(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.5)
    assert factor.tolist() == pytest.approx([1e-2, 1e2])


def test_the_search_is_that_on_the_tokens_themselves() -> None:
    weight, x = layer()
    mean = x.double().abs().mean(dim=0)
    alphas = [i / 20 for i in range(20)]
    errors = [error_on_tokens(weight, x, candidate(mean, alpha)) for alpha in alphas]
    best = alphas[int(np.argmin(errors))]
    assert 0.0 < best < 0.95  # inside the grid, or the search would not be tested
    found = search(weight, mean, x.double().T @ x.double(), GROUPS)
    assert torch.allclose(found, candidate(mean, best))
    assert min(errors) < 0.8 * errors[0]


def test_nothing_is_scaled_where_scaling_does_not_help() -> None:
    """Weights that the scheme holds exactly have no error to lessen."""
    _, x = layer()
    weight = torch.randint(-3, 4, (40, 64), generator=torch.Generator().manual_seed(1)).float()
    weight[:, ::16], weight[:, 1::16] = -5, 10  # steps of 1 in every group of every row
    moment = x.double().T @ x.double()
    assert torch.equal(search(weight, x.double().abs().mean(dim=0), moment, GROUPS), torch.ones(64).double())


@pytest.mark.parametrize("name", CONFIGS)
def test_the_function_is_kept(name: str) -> None:
    shell, ids = fresh(name), random_ids(2, 33)
    before = logits(shell, ids)
    weights = [pair.linear.weight.clone() for pair in pairs(shell)]
    awq(shell, {pair.weight: GROUPS for pair in pairs(shell)})
    changed = [not torch.equal(p.linear.weight, w) for p, w in zip(pairs(shell), weights, strict=True)]
    assert any(changed)
    assert float((logits(shell, ids) - before).abs().max()) <= 1e-9


def test_a_weight_that_stays_float_is_not_scaled() -> None:
    shell = fresh("mamba2")
    schemes = {pair.weight: GROUPS for pair in pairs(shell) if pair.weight != "layers.1.out_proj.weight"}
    before = [pair.linear.weight.clone() for pair in pairs(shell)]
    awq(shell, schemes)
    changed = {
        p.weight for p, w in zip(pairs(shell), before, strict=True) if not torch.equal(p.linear.weight, w)
    }
    assert "layers.1.out_proj.weight" not in changed
    assert changed & {"layers.0.out_proj.weight", "layers.2.out_proj.weight"}


@pytest.mark.parametrize("name", ["mamba-wide", "mamba2-wide"])
def test_what_the_recipe_plans(name: str) -> None:
    plan = ssmquant.plan(saved(name), "awq")
    rows = {row.site.name: (row.scheme.short(), row.quantizer) for row in plan.rows}
    for projection in ("in_proj", "out_proj"):
        assert rows[f"layers.0.{projection}.weight"] == ("int4 per-group 128 asymmetric", "clip")
    if name == "mamba-wide":
        assert rows["layers.0.x_proj.weight"][0] == rows["layers.0.dt_proj.weight"][0] == "float16"
    assert plan.transforms == ("awq",)
    assert all(scheme.is_float for scheme in plan.activation_schemes.values())


@pytest.mark.parametrize("name", ["mamba-wide", "mamba2-wide"])
def test_through_a_folder_bit_for_bit(tmp_path: Path, name: str) -> None:
    model, ids = quantised(name, "awq"), random_ids(2, 20)
    model.save(tmp_path / "out")
    loaded = ssmquant.load(tmp_path / "out")
    assert loaded.plan == model.plan
    assert torch.equal(loaded.logits(ids), model.logits(ids))


@pytest.mark.parametrize("name", ["mamba-wide", "mamba2-wide"])
def test_the_bytes_are_those_of_the_plan(name: str) -> None:
    model = quantised(name, "awq")
    assert model.plan is not None
    stored = 0
    for _, weight in model.shell.weights():
        stored += sum(t.numel() * t.element_size() for t in weight.stored.values())
    assert stored == model.plan.weight_bytes()
    (linear,) = (w for n, w in model.shell.weights() if n == "layers.0.in_proj.weight")
    out, columns = linear.shape
    found = {n: (t.dtype, t.numel() * t.element_size()) for n, t in linear.stored.items()}
    assert found == {
        "packed": (torch.uint8, out * columns // 2),
        "scale": (torch.float32, out * columns // 128 * 4),
        "zero_point": (torch.int8, out * columns // 128),
    }


def test_out_proj_of_mamba1_is_clipped_and_not_scaled() -> None:
    source, model = float_model("mamba-wide"), quantised("mamba-wide", "awq")
    plain = quantised("mamba-wide", "awq+quantizer=rtn")
    for before, block, other in zip(source.shell.blocks, model.shell.blocks, plain.shell.blocks, strict=True):
        weight = before.mixer.out_proj.dequantize()
        step = block.mixer.out_proj.stored["scale"].repeat_interleave(128, dim=1)
        coarse = other.mixer.out_proj.stored["scale"].repeat_interleave(128, dim=1)
        assert bool(((other.mixer.out_proj.dequantize() - weight).abs() <= coarse * 1.001).all())
        assert bool((step <= coarse * (1 + 1e-6)).all())
        assert float((step < 0.99 * coarse).float().mean()) > 0.2


def test_it_is_closer_than_plain_rounding_and_clipping_helps(embedded_model: Path) -> None:
    """On the embedded model, with little calibration: less divergence in every document (measured: half of it)."""
    model = ssmquant.load(embedded_model)
    (english,) = (d for d in evaluation_documents(None) if d.name == "en")
    ids = windows(english.texts, model.tokenizer, seqlen=128, samples=8, source="en")
    expected = model.logits(ids)
    plain, unclipped, full = (
        compare(expected, ssmquant.quantize(model, r, samples=6, seqlen=128, cache=False).logits(ids), ids).kl
        for r in ("gptq-w4a16+quantizer=rtn", "awq+quantizer=rtn", "awq")
    )
    assert bool((full < plain).all())
    assert float(full.sum()) < 0.75 * float(plain.sum())
    assert float(full.sum()) < float(unclipped.sum())
