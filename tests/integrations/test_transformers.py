"""transformers reads our folders once ssmquant is imported; without it, it says so and what it returns is no model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tiny_models import float_model, quantised, random_ids
from transformers import AutoModelForCausalLM

from ssmquant.errors import CheckpointError, InputError
from ssmquant.integrations.transformers import SsmquantConfig

IDS = random_ids(2, 30, seed=8)
NAME, RECIPE = "mamba2-two-groups", "quamba2-w8a8"


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a quantised model; no test may change it."""
    folder = tmp_path_factory.mktemp("quantised") / "model"
    quantised(NAME, RECIPE).save(folder)
    return folder


@pytest.fixture
def folder(saved_model: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(saved_model, tmp_path / "model")


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(IDS).logits
    return found


def test_from_pretrained_is_our_model_bit_for_bit(saved_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved_model)
    assert torch.equal(logits(model), quantised(NAME, RECIPE).logits(IDS))
    assert not model.training
    assert model.is_quantized
    kept = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    assert kept == {
        name: tensor.dtype for name, tensor in load_file(saved_model / "model.safetensors").items()
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "auto"])
def test_floats_stay_float32_whatever_is_asked_for(saved_model: Path, dtype: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(saved_model, dtype=dtype)
    assert torch.equal(logits(model), quantised(NAME, RECIPE).logits(IDS))


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mamba", None),
        ("mamba2-two-groups", None),
        ("falcon_mamba-untied-biased", "quamba-w8a8"),
        ("mamba", "w8a8-dynamic"),
        ("mamba2-untied-biased", "quamba2-w8a8"),
        ("mamba2-wide", "quamba2-w4a8"),
    ],
)
def test_transformers_forward_is_the_engine(name: str, recipe: str | None) -> None:
    model = float_model(name) if recipe is None else quantised(name, recipe)
    assert torch.equal(logits(model.module), model.logits(IDS))


def test_transformers_gives_losses_and_hidden_states() -> None:
    model = quantised(NAME, RECIPE)
    with torch.no_grad():
        output = model.module(IDS, labels=IDS, output_hidden_states=True)
    expected = torch.nn.functional.cross_entropy(
        model.logits(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten()
    )
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(output.hidden_states) == 4
    assert torch.equal(model.shell.head(output.hidden_states[-1]), output.logits)


def test_the_entry_of_the_config_is_carried_whole(saved_model: Path) -> None:
    entry = json.loads((saved_model / "config.json").read_text())["quantization_config"]
    config = AutoModelForCausalLM.from_pretrained(saved_model).config.quantization_config
    assert isinstance(config, SsmquantConfig)
    assert config.to_dict() == config.to_diff_dict() == entry


def test_transformers_does_not_write_our_folders(saved_model: Path, tmp_path: Path) -> None:
    """Such a folder would have no digests and golden logits."""
    model = AutoModelForCausalLM.from_pretrained(saved_model)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "again")


def test_a_missing_tensor_is_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["backbone.layers.1.mixer.D"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 of them not in the folder: backbone\.layers\.1\.mixer\.D;"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 7}, "written in format version 7"),
        ({"plan": {}}, "no plan for this model"),
        ({"plan": None}, "no plan for this model"),
    ],
)
def test_a_damaged_entry_is_told(folder: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] |= change
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        AutoModelForCausalLM.from_pretrained(folder)


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments], capture_output=True, text=True, check=True
    )


def test_our_import_makes_the_difference(saved_model: Path) -> None:
    """What a user sees who forgets ``import ssmquant``: a warning, a report, and a model of random weights.

    Then the import comes, after that of transformers. (Other tests import in the other order.)
    """
    code = """
        import json, sys
        import torch
        from transformers import AutoModelForCausalLM

        def logits():
            with torch.no_grad():
                return AutoModelForCausalLM.from_pretrained(sys.argv[1])(torch.tensor([[1, 2, 3]])).logits

        without = [logits(), logits()]
        assert "ssmquant" not in sys.modules
        import ssmquant
        found = {
            "twice": torch.equal(*without),
            "with": torch.equal(logits(), ssmquant.load(sys.argv[1]).logits(torch.tensor([[1, 2, 3]]))),
        }
        print(json.dumps(found))
    """
    found = run(code, str(saved_model))
    assert "Unknown quantization type, got ssmquant" in found.stderr
    assert "in_proj.weight" in found.stderr
    assert "MISSING" in found.stderr
    assert json.loads(found.stdout) == {"twice": False, "with": True}
