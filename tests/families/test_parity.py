"""Float models give transformers' own logits, through our engine and through transformers' forward."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny_models import (
    CONFIGS,
    MAMBA1,
    PARITY,
    float_model,
    random_ids,
    reference,
    saved,
)
from torch import Tensor
from transformers import AutoModelForCausalLM

import ssmquant
from ssmquant.errors import ModelError
from ssmquant.ops.registry import use_backend
from ssmquant.tolerance import error_ratio

SHARED = ("mamba1-27m", "mamba2-8m", "mamba2-29m")


@torch.no_grad()
def check_parity(folder: Path, model: ssmquant.Model, ids: Tensor) -> None:
    expected = reference(folder)(ids).logits
    assert error_ratio(model.logits(ids), expected) <= PARITY
    assert error_ratio(model.module(ids).logits, expected) <= PARITY


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str) -> None:
    model = float_model(name)
    assert model.shell.tied == CONFIGS[name].tie_word_embeddings
    check_parity(saved(name), model, random_ids(2, 37))


@pytest.mark.parametrize("name", CONFIGS)
def test_one_percent_of_dt_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = "selective_scan" if name in MAMBA1 else "ssd"

    def longer(dt: Tensor) -> Tensor:
        return torch.nn.functional.softplus(dt) * 1.01

    monkeypatch.setattr(f"ssmquant.ops.{scan}.reference.softplus", longer)
    with use_backend("reference"), pytest.raises(AssertionError):
        check_parity(saved(name), float_model(name), random_ids(2, 37))


def test_embedded_model_has_transformers_logits(embedded_model: Path) -> None:
    check_parity(embedded_model, ssmquant.load(embedded_model), random_ids(1, 70, vocab=8000))


@pytest.mark.parametrize("name", SHARED)
def test_larger_models_have_transformers_logits(shared: Path, name: str) -> None:
    folder = shared / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no model in {folder}")
    check_parity(folder, ssmquant.load(folder), random_ids(1, 70, vocab=8000))


@pytest.mark.parametrize("name", ["mamba", "falcon_mamba", "mamba2"])
def test_rescale_flag_is_about_initialisation_alone(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(saved(name), tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    config["rescale_prenorm_residual"] = True
    (folder / "config.json").write_text(json.dumps(config))
    ids = random_ids(1, 20)
    assert torch.equal(ssmquant.load(folder).logits(ids), float_model(name).logits(ids))


def test_weights_in_half_precision_are_loaded_as_float32(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved("mamba2"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)
    loaded = ssmquant.load(tmp_path)
    assert {tensor.dtype for tensor in loaded.module.state_dict().values()} == {torch.float32}
    check_parity(tmp_path, loaded, random_ids(1, 20))


def test_an_untied_head_that_is_missing_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(saved("mamba2"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lm_head\.weight is missing .* set tie_word_embeddings"):
        ssmquant.load(folder)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(saved("mamba"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="hidden_act 'gelu' is not supported"):
        ssmquant.load(folder)


def test_an_unknown_family_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba3"}))
    with pytest.raises(ModelError, match="model type 'mamba3' is not supported; did you mean 'mamba'"):
        ssmquant.load(tmp_path)
