"""Sensitivities are the divergences of models that are quantised at one place and float everywhere else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from tests.tiny_models import float_model, quantised, texts
from torch import Tensor

from ssmquant.data import calibration_windows
from ssmquant.families import Shell
from ssmquant.sensitivity import ACTIVATIONS, Divergences, sensitivities, sensitivities_cached

MODEL = "mamba2-two-groups"
ALL_WEIGHTS = "keep=*.weight+keep=lm_head.input"
ACTIVE = "keep=layers.*.state+keep=layers.*.y+keep=layers.*.hidden+keep=layers.*.[zyxBC]*+keep=layers.*.dt"


def windows() -> Tensor:
    return calibration_windows(str(texts()), float_model(MODEL).tokenizer, samples=8, seqlen=48)


def shells() -> tuple[Mapping[str, Shell], Shell]:
    """Return the model with int8 weights alone, of two kinds, and with int8 activations alone."""
    weights = {
        "rows": quantised(MODEL, f"quamba-w8a8+{ACTIVE}+keep=lm_head.input"),
        "tensor": quantised(MODEL, f"w8a8-naive+{ACTIVE}+keep=lm_head.input"),
    }
    activations = quantised(MODEL, f"w8a8-naive+{ALL_WEIGHTS}+keep=layers.*.state")
    return {name: model.shell for name, model in weights.items()}, activations.shell


def alone(recipe: str, keep: list[str]) -> float:
    """Return the divergence at every fourth token of a model of which only some sites are not kept."""
    model = quantised(MODEL, "+".join([recipe, *(f"keep={pattern}" for pattern in keep)]))
    p, q = (m.logits(windows())[:, ::4].double().log_softmax(-1) for m in (float_model(MODEL), model))
    return float((p.exp() * (p - q)).sum(-1).mean())


def others(place: str) -> list[str]:
    """Return patterns of all weights but those of one place."""
    _, layer, stage, _ = place.split(".")
    weights = [f"layers.{n}.{s}.weight" for n in range(3) for s in ("in_proj", "out_proj")]
    return [
        *(w for w in weights if w != f"layers.{layer}.{stage}.weight"),
        "layers.*.conv1d.weight", "embedding.weight", "lm_head.*",
        "layers.*.state", "layers.*.y", "layers.*.hidden", "layers.*.[zxBC]*", "layers.*.dt",
    ]  # fmt: skip


SITES = [f"layers.{n}.{stage}.weight" for n in range(3) for stage in ("in_proj", "out_proj")]


def test_they_are_those_of_models_quantised_at_one_place() -> None:
    shell = float_model(MODEL).shell
    weights, activations = shells()
    found = sensitivities(shell, weights, SITES, activations, windows())
    assert found.keys() == {*SITES, *(f"layers.{n}" for n in range(3))}
    for site in ("layers.0.in_proj.weight", "layers.1.out_proj.weight", "layers.2.in_proj.weight"):
        assert found[site]["tensor"] == pytest.approx(alone("w8a8-naive", others(site)), rel=1e-3), site
    kept = ["*.weight", "lm_head.input", "layers.*.state", "layers.0.*", "layers.2.*"]
    assert found["layers.1"][ACTIVATIONS] == pytest.approx(alone("w8a8-naive", kept), rel=1e-3)
    assert all(value > 0 for divergences in found.values() for value in divergences.values())


def test_the_float_model_is_left_alone() -> None:
    shell = float_model(MODEL).shell
    before = [(block.mixer.in_proj, block.mixer.out_proj) for block in shell.blocks]
    weights, activations = shells()
    sensitivities(shell, weights, SITES, activations, windows()[:1])
    assert [(block.mixer.in_proj, block.mixer.out_proj) for block in shell.blocks] == before


def test_the_model_itself_is_at_no_distance() -> None:
    shell = float_model(MODEL).shell
    found = sensitivities(shell, {"same": shell}, SITES, shell, windows())
    assert {value for divergences in found.values() for value in divergences.values()} == {0.0}


def test_eight_sequences_from_the_whole_text_are_read() -> None:
    shell = float_model(MODEL).shell
    calls: list[tuple[str, int, int]] = []
    ids = windows()[:, :4]
    sensitivities(
        shell, {"same": shell}, SITES, shell, torch.cat([ids] * 3), lambda *call: calls.append(call)
    )
    assert calls == [("measure sensitivity", done, 8) for done in range(1, 9)]


def test_they_are_measured_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made: list[int] = []

    def measured() -> Divergences:
        made.append(1)
        return {"layers.0": {ACTIVATIONS: 0.1}}

    for key, count in (({"model": "a"}, 1), ({"model": "a"}, 1), ({"model": "b"}, 2)):
        assert sensitivities_cached(measured, key, cache=tmp_path) == {"layers.0": {ACTIVATIONS: 0.1}}
        assert len(made) == count
    files = list((tmp_path / "sensitivity").iterdir())
    assert [path.suffix for path in files] == [".json", ".json"]
    files[0].write_text("damaged")
    for key in ({"model": "a"}, {"model": "b"}):
        sensitivities_cached(measured, key, cache=tmp_path)
    assert len(made) == 3
    assert all(json.loads(path.read_text()) for path in files)
    sensitivities_cached(measured, {"model": "a"}, cache=None)
    assert len(made) == 4


def test_a_cache_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "sensitivity").write_text("in the way")
    assert sensitivities_cached(lambda: {"layers.0": {}}, {}, cache=tmp_path) == {"layers.0": {}}
    assert "sensitivities are not cached" in caplog.text
