"""Every recipe on a tiny model: near the float model, stored as planned, and the float model is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.tiny_models import PARITY, fitting, float_model, quantised, random_ids, saved, texts

import ssmquant
from ssmquant.calibrate import calibrate
from ssmquant.data import calibration_windows
from ssmquant.errors import DataError, ModelError, RecipeError
from ssmquant.files import digest, digests
from ssmquant.modules.mixer import StateSite
from ssmquant.modules.weights import Weight
from ssmquant.numerics import scale_from_absmax
from ssmquant.planning import Plan
from ssmquant.tolerance import error_ratio

#: Largest error of the logits by the bits of in_proj's weight: tiny random models have no redundancy to lose.
LARGEST = {16: 0.005, 8: 0.45, 4: 0.55}
SMALLEST = 1e-4
IDS = random_ids(4, 48, seed=5)


def plan_of(model: ssmquant.Model) -> Plan:
    assert model.plan is not None
    return model.plan


def error(name: str, recipe: str) -> float:
    return error_ratio(quantised(name, recipe).logits(IDS), float_model(name).logits(IDS))


@pytest.mark.parametrize(("recipe", "name"), fitting())
def test_logits_are_near_those_of_the_float_model(recipe: str, name: str) -> None:
    bits = plan_of(quantised(name, recipe)).schemes["layers.0.in_proj.weight"].bits
    assert SMALLEST < error(name, recipe) < LARGEST[bits]


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mamba2-wide", "ssmquant-w8a8"),
        ("mamba2-wide", "quamba2-w4a8+quantizer=gptq-sequential"),
        ("mamba-wide", "awq"),
    ],
)
def test_what_is_stored_lies_row_by_row(name: str, recipe: str) -> None:
    """Kernels take a weight as it lies, in a model just made as in one that was saved and loaded."""
    state = quantised(name, recipe).shell.model.state_dict()
    assert [path for path, tensor in state.items() if not tensor.is_contiguous()] == []


@pytest.mark.parametrize("name", ["mamba2-two-groups", "mamba2-untied-biased"])
def test_finer_scales_are_nearer(name: str) -> None:
    recipes = ["fp16", "w8a8-dynamic", "quamba2-w8a8+ssm_state=float32", "w8a8-naive+ssm_state=float32"]
    errors = [error(name, recipe) for recipe in recipes]
    assert errors == sorted(errors)
    assert len(set(errors)) == len(errors)


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba-untied-biased"])
def test_finer_scales_are_nearer_in_mamba1(name: str) -> None:
    recipes = ["fp16", "w8a8-dynamic", "quamba-w8a8+ssm_state=float32", "w8a8-naive+ssm_state=float32"]
    errors = [error(name, recipe) for recipe in recipes]
    assert errors == sorted(errors)


def test_codes_in_the_wrong_rows_are_beyond_every_bound() -> None:
    model = ssmquant.quantize(
        float_model("mamba2-wide"), "w8a8-dynamic", calibration=str(texts()), cache=False
    )
    in_proj = model.shell.blocks[0].mixer.in_proj
    in_proj.codes.copy_(in_proj.codes.flip(0))  # type: ignore[operator]
    assert error_ratio(model.logits(IDS), float_model("mamba2-wide").logits(IDS)) > max(LARGEST.values())


@pytest.mark.parametrize(("recipe", "name"), fitting())
def test_every_weight_is_stored_as_planned(recipe: str, name: str) -> None:
    model = quantised(name, recipe)
    tensors = model.module.state_dict()
    floats = {tensor.numel() for tensor in tensors.values() if tensor.is_floating_point()}
    schemes = {row.site.name: row.scheme for row in plan_of(model).rows}
    for site, weight in model.shell.weights():
        if schemes[site].is_float:
            assert weight.weight.dtype == (torch.float16 if schemes[site].bits == 16 else torch.float32)
            continue
        assert not hasattr(weight, "weight")
        codes = [tensor for tensor in weight.stored.values() if not tensor.is_floating_point()]
        numel = weight.shape[0] * weight.shape[1]
        # What is not codes (a sparse matrix beside them, say) is counted as well.
        assert schemes[site].bits * numel / 8 <= sum(tensor.nbytes for tensor in codes) <= numel
        if numel >= 4096:  # smaller ones may have the size of a vector
            assert numel not in floats, f"{site} is also stored as floats"


@pytest.mark.parametrize(("recipe", "name"), fitting())
def test_every_static_scale_is_there(recipe: str, name: str) -> None:
    model = quantised(name, recipe)
    schemes, sites = plan_of(model).activation_schemes, dict(model.shell.activations())
    assert {site for site in sites if sites[site].scheme.is_static_int} == {
        site for site, scheme in schemes.items() if scheme.is_static_int
    }
    for site, module in sites.items():
        assert module.scheme == schemes[site]
        if module.scheme.is_static_int:
            assert module.scale.dtype == torch.float32
            assert torch.isfinite(module.scale).all()
            assert bool((module.scale > 0).all())
        else:
            assert not module.state_dict(), f"{site} needs no tensors"


def test_scales_are_those_of_the_calibration_text() -> None:
    source, model = float_model("mamba"), quantised("mamba", "w8a8-naive")
    windows = calibration_windows(str(texts()), source.tokenizer, samples=8, seqlen=64)
    needs = {site: ("absmax",) for site, module in model.shell.activations() if module.scheme.is_static_int}
    statistics = calibrate(source.shell, windows, needs)
    assert len(needs) == 3 * 10 + 1
    for site, module in model.shell.activations():
        expected = scale_from_absmax(statistics.absmax(site).amax())
        assert torch.equal(module.scale.flatten(), expected.reshape(1))


def test_piecewise_scales_are_the_largest_of_their_group() -> None:
    model = quantised("mamba2-two-groups", "quamba2-w8a8")
    source = float_model("mamba2-two-groups")
    windows = calibration_windows(str(texts()), source.tokenizer, samples=8, seqlen=64)
    statistics = calibrate(source.shell, windows, {"layers.0.x": ("absmax",), "layers.0.B": ("absmax",)})
    x, b = dict(model.shell.activations())["layers.0.x"], dict(model.shell.activations())["layers.0.B"]
    # The layer's channels are reordered, its maxima are the same ones; layer 0 reads what it read before.
    # (Up to float sums: the norm's gain is in the weights now.)
    assert x.scale.numel() == 2 * 4 * 4
    for found, site in ((x.scale.view(2, -1).amax(dim=1), "layers.0.x"), (b.scale, "layers.0.B")):
        expected = scale_from_absmax(statistics.absmax(site).view(2, -1).amax(dim=1))
        assert error_ratio(found, expected) <= PARITY


def test_weights_are_rounded_to_nearest() -> None:
    source, model = (
        float_model("mamba2-untied-biased").shell,
        quantised("mamba2-untied-biased", "w8a8-dynamic").shell,
    )
    weights = dict(source.weights())
    for site, weight in model.weights():
        if weight.scheme.is_float:
            continue
        exact = weights[site].weight
        step = weight.stored["scale"][:, None]
        # Half a step, and the rounding of float32 to the code and back.
        assert bool(((weight.dequantize() - exact).abs() <= step * (0.5 + 1e-4)).all())
        assert torch.equal(step.flatten(), scale_from_absmax(exact.abs().amax(dim=1)))


def test_a_tied_head_is_stored_once() -> None:
    tied = quantised("mamba2-two-groups", "quamba2-w8a8")
    untied = quantised("mamba2-two-groups", "quamba2-w8a8+head=float16")
    assert not any("lm_head.linear" in name for name in tied.module.state_dict())
    assert untied.module.state_dict()["lm_head.linear.weight"].dtype == torch.float16
    table = untied.shell.embedding
    assert table.codes.dtype == torch.int8  # type: ignore[union-attr]
    exact = float_model("mamba2-two-groups").shell.embedding.weight
    assert torch.equal(untied.module.state_dict()["lm_head.linear.weight"], exact.half())


@pytest.mark.parametrize(("recipe", "name"), fitting())
def test_the_float_model_is_left_alone(recipe: str, name: str) -> None:
    quantised(name, recipe)
    model, fresh = float_model(name), ssmquant.load(saved(name))
    assert digests(model.module.state_dict()) == digests(fresh.module.state_dict())
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert not any(block.mixer.hadamard for block in model.shell.blocks)
    assert not any(module._forward_hooks for module in model.module.modules())
    assert model.plan is None


def test_a_quantised_model_is_not_quantised_again() -> None:
    with pytest.raises(ModelError, match=r"quantised already \(quamba-w8a8\); start from the float model"):
        ssmquant.quantize(quantised("mamba", "quamba-w8a8"), "w8a8-naive")


def test_a_recipe_that_does_not_fit_is_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match="Mamba-1 has no heads"):
        ssmquant.quantize(float_model("mamba"), "quamba2-w8a8", calibration="/no/such/text.jsonl")


def test_without_a_tokenizer_only_what_needs_no_text_works(tmp_path: Path) -> None:
    source = float_model("mamba")
    model = ssmquant.Model(source.name, source.shell, None)
    with pytest.raises(ModelError, match="has no tokenizer, so it cannot be calibrated on text"):
        ssmquant.quantize(model, "w8a8-naive", cache=False)
    for recipe in ("fp16", "w8a8-dynamic"):
        made = ssmquant.quantize(model, recipe, cache=False)
        assert made.provenance == {}
        assert torch.equal(made.logits(IDS), quantised("mamba", recipe).logits(IDS))


def test_too_little_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        ssmquant.quantize(
            float_model("mamba"), "w8a8-naive", calibration=str(tmp_path / "no.jsonl"), samples=8, seqlen=64
        )


def test_it_says_how_it_was_calibrated() -> None:
    source, model = float_model("mamba"), quantised("mamba", "w8a8-naive")
    windows = calibration_windows(str(texts()), source.tokenizer, samples=8, seqlen=64)
    assert model.provenance == {
        "text": str(texts()),
        "samples": 8,
        "seqlen": 64,
        "tokens_digest": digest(windows),
    }
    assert model.name == source.name
    assert model.tokenizer is source.tokenizer


def test_statistics_come_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSMQUANT_CACHE", str(tmp_path))
    calls: list[tuple[str, int, int]] = []

    def make() -> ssmquant.Model:
        calls.clear()
        return ssmquant.quantize(
            float_model("mamba2-two-groups"),
            "quamba2-w8a8",
            calibration=str(texts()),
            samples=8,
            seqlen=64,
            progress=lambda *call: calls.append(call),
        )

    first = make()
    assert [call for call in calls if call[0] == "calibrate"] == [
        *(("calibrate", done, 8) for done in range(1, 9)),  # for the order of the channels
        *(("calibrate", done, 8) for done in range(1, 9)),  # for the ranges of the reordered model
    ]
    assert len(list((tmp_path / "calibration").iterdir())) == 2
    second = make()
    assert {call[0] for call in calls} == {"quantise weights"}
    assert calls == [("quantise weights", done, 10) for done in range(1, 11)]
    assert digests(first.module.state_dict()) == digests(second.module.state_dict())
    # … and with them the model is the one without a cache.
    plain = quantised("mamba2-two-groups", "quamba2-w8a8")
    assert digests(first.module.state_dict()) == digests(plain.module.state_dict())


def test_more_text_gives_wider_ranges() -> None:
    few = ssmquant.quantize(
        float_model("mamba"), "w8a8-naive", calibration=str(texts()), samples=1, seqlen=64, cache=False
    )
    many = quantised("mamba", "w8a8-naive")
    pairs = zip(few.shell.activations(), many.shell.activations(), strict=True)
    wider = [bool((b.scale >= a.scale).all()) for (_, a), (_, b) in pairs]
    assert all(wider)
    assert few.provenance["samples"] == 1


def test_state_scales_are_per_head_group_and_d_state() -> None:
    model = quantised("mamba2-two-groups", "quamba2-w8a8")
    for block in model.shell.blocks:
        state = block.mixer.state
        assert isinstance(state, StateSite)
        assert state.scale.shape == (2 * 4 * 4, 16)
        assert len(state.scale.unique()) > 100
        assert isinstance(block.mixer.in_proj, Weight)
