"""Saved states: any engine of the same model goes on from them as if nothing had happened; others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tests.tiny_models import PARITY, float_model, quantised, random_ids

import ssmquant
from ssmquant.errors import CheckpointError
from ssmquant.runtime.engine import Engine

#: Every kind of recurrent state, with pending tokens of codes, of floats, and with scales of their own.
MODELS = [
    ("mamba2-two-groups", "quamba2-w8a8"),
    ("mamba2-two-groups", "quamba2-w8a8+ssm_state=float16"),
    ("mamba2-two-groups", "quamba2-w8a8+ssm_state=float32"),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.*.x"),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.*.z"),
    ("mamba2-two-groups", "quamba2-w8a8+keep=layers.*.x+keep=layers.*.B+keep=layers.*.C+keep=layers.*.dt"),
    ("mamba2-two-groups", None),
    ("mamba", "quamba-w8a8+ssm_state=int8"),
    ("mamba", "quamba-w8a8+ssm_state=int8+keep=layers.*.dt"),
    ("mamba", None),
    ("mamba", "quamba-w8a8"),
    ("falcon_mamba-untied-biased", "quamba-w8a8"),
]
LENGTHS = (1, 70, 63, 131)


def model_of(name: str, recipe: str | None) -> ssmquant.Model:
    return float_model(name) if recipe is None else quantised(name, recipe)


def engines(model: ssmquant.Model) -> list[Any]:
    """Return the engine that runs the model, and the one that runs it stage by stage."""
    return [model.engine(), Engine(model.shell, identity=model.digest)]


def prompts() -> list[list[int]]:
    return [random_ids(1, length, seed=length)[0].tolist() for length in LENGTHS]


def continued(engine: Any, state: Any) -> torch.Tensor:
    steps = []
    for tokens in random_ids(len(LENGTHS), 4, seed=5).T:
        logits, state = engine.step(tokens, state)
        steps.append(logits)
    return torch.stack(steps)


@pytest.mark.parametrize(("name", "recipe"), MODELS)
def test_a_saved_state_goes_on(name: str, recipe: str | None, tmp_path: Path) -> None:
    model = model_of(name, recipe)
    for writer in engines(model):
        _, state = writer.prefill(prompts())
        _, state = writer.step(torch.tensor([1, 2, 3, 4]), state)  # as a prefill and a step leave it
        expected = continued(writer, state)
        state.save(tmp_path / "state")
        for reader in engines(model):
            found = continued(reader, reader.load_state(tmp_path / "state"))
            if type(reader) is type(writer):
                assert torch.equal(found, expected)
            else:  # a float sum on the other side of a rounding changes a sequence a little
                ratios = (found - expected).double().norm(dim=-1) / expected.double().norm(dim=-1)
                assert (ratios <= PARITY).double().mean() >= 0.5
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]  # nothing half written is left


def test_a_state_is_small_and_does_not_grow(tmp_path: Path) -> None:
    engine, sizes = quantised("mamba2-two-groups", "quamba2-w8a8").engine(), []
    for tokens in (64, 128, 640):
        _, state = engine.prefill([[1] * tokens])
        state.save(tmp_path / "state")
        sizes.append((tmp_path / "state").stat().st_size)
    assert max(sizes) - min(sizes) <= 8  # digits of the position


def saved(tmp_path: Path, model: ssmquant.Model) -> Path:
    path = tmp_path / "state"
    model.engine().prefill(prompts())[1].save(path)
    return path


@pytest.fixture
def model() -> ssmquant.Model:
    return quantised("mamba2-two-groups", "quamba2-w8a8")


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mamba2-two-groups", "quamba2-w8a8+ssm_state=float16"),
        ("mamba2-two-groups", "quamba-w8a8"),
        ("mamba", "quamba-w8a8"),
        ("mamba2-two-groups", None),
    ],
)
def test_another_models_state_is_refused(
    name: str, recipe: str | None, tmp_path: Path, model: ssmquant.Model
) -> None:
    path = saved(tmp_path, model)
    for engine in engines(model_of(name, recipe)):
        with pytest.raises(CheckpointError, match="state of another model"):
            engine.load_state(path)


def test_a_loaded_model_reads_the_states_of_the_model_that_was_saved(
    tmp_path: Path, model: ssmquant.Model
) -> None:
    path = saved(tmp_path, model)
    model.save(tmp_path / "model")
    engine, loaded = model.engine(), ssmquant.load(tmp_path / "model").engine()
    expected = continued(engine, engine.load_state(path))
    assert torch.equal(continued(loaded, loaded.load_state(path)), expected)


def test_a_damaged_state_is_refused(tmp_path: Path, model: ssmquant.Model) -> None:
    path = saved(tmp_path, model)
    content = bytearray(path.read_bytes())
    for at in (len(content) - 1, len(content) // 2, 4):
        damaged = tmp_path / "damaged"
        damaged.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        for engine in engines(model):
            with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
                engine.load_state(damaged)
    (tmp_path / "short").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="cannot be read as a saved state"):
        model.engine().load_state(tmp_path / "short")


def test_what_is_no_state_is_refused(tmp_path: Path, model: ssmquant.Model) -> None:
    engine = model.engine()
    with pytest.raises(CheckpointError, match="cannot be read as a saved state"):
        engine.load_state(tmp_path / "missing")
    (tmp_path / "text").write_text("Once upon a time")
    with pytest.raises(CheckpointError, match="cannot be read as a saved state"):
        engine.load_state(tmp_path / "text")
    save_file({"weight": torch.zeros(3)}, tmp_path / "weights")
    with pytest.raises(CheckpointError, match="no saved state"):
        engine.load_state(tmp_path / "weights")


@pytest.mark.parametrize(("change", "message"), [("version", "of version 7"), ("ssm", "ssm of layer 1 is")])
def test_a_state_of_another_form_is_refused(
    change: str, message: str, tmp_path: Path, model: ssmquant.Model
) -> None:
    from ssmquant.files import combined, digests

    path = saved(tmp_path, model)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
    if change == "version":
        header["version"] = "7"
    else:
        tensors["0.1.ssm"] = tensors["0.1.ssm"][:, :-1].clone()
        header["digest"] = combined(digests(tensors))
    save_file(tensors, path, metadata=header)
    with pytest.raises(CheckpointError, match=message):
        model.engine().load_state(path)


def test_a_state_that_cannot_be_written_leaves_nothing(tmp_path: Path, model: ssmquant.Model) -> None:
    _, state = model.engine().prefill([[1, 2]])
    with pytest.raises(CheckpointError, match="cannot be written"):
        state.save(tmp_path / "missing" / "state")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="cannot be written"):
        state.save(tmp_path / "folder")
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]
