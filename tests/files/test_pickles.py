from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmquant.errors import ModelError
from ssmquant.files import digests, read_tensors

Tensors = dict[str, torch.Tensor]
Save = Callable[[Any, Path], None]


def zipped(value: Any, path: Path) -> None:
    torch.save(value, path)


def legacy(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def bare(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value, protocol=2))


class Touch:
    """Creates a file when it is unpickled, as an attacker's pickle would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pytorch_model.bin"


@pytest.mark.parametrize("save", [zipped, legacy])
def test_tensors_are_read(path: Path, tensors: Tensors, save: Save) -> None:
    save(tensors, path)
    assert digests(read_tensors(path.parent)) == digests(tensors)


def test_parameters_come_without_gradients(path: Path) -> None:
    torch.save({"a": torch.nn.Parameter(torch.ones(3))}, path)
    assert not read_tensors(path.parent)["a"].requires_grad


@pytest.mark.parametrize("save", [zipped, legacy, bare])
def test_a_malicious_pickle_is_not_run(path: Path, save: Save) -> None:
    witness = path.with_name("witness")
    save({"a": Touch(witness)}, path)
    with pytest.raises(ModelError, match=r"pytorch_model\.bin"):
        read_tensors(path.parent)
    assert not witness.exists()


def test_the_refusal_names_the_code_and_the_way_out(path: Path) -> None:
    torch.save({"a": torch.ones(1), "args": argparse.Namespace(lr=1)}, path)
    with pytest.raises(
        ModelError, match=r"asks to run argparse\.Namespace .* trust_pickle=True if you trust"
    ):
        read_tensors(path.parent)


def test_trust_runs_the_pickle(path: Path) -> None:
    """The other half of the test above: the same file does create the witness when the user says so."""
    witness = path.with_name("witness")
    torch.save({"a": Touch(witness)}, path)
    with pytest.raises(ModelError, match=r"found 1 other entries: 'a' \(NoneType\)"):
        read_tensors(path.parent, trust_pickle=True)
    assert witness.exists()


def test_trust_reads_tensors_of_foreign_classes(path: Path) -> None:
    torch.save(Weights({"a": torch.ones(2)}), path)
    with pytest.raises(ModelError, match=r"asks to run .*Weights"):
        read_tensors(path.parent)
    assert read_tensors(path.parent, trust_pickle=True)["a"].tolist() == [1, 1]


class Weights(dict[str, torch.Tensor]):
    """A dict of a class that only this file knows."""


def test_a_training_checkpoint_is_refused(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"a": torch.ones(1)}, "lr": 0.1, "w": torch.ones(1)}, path)
    with pytest.raises(
        ModelError, match=r"3 other entries: 'epoch' \(int\), 'state_dict' \(dict\), 'lr' \(float\)"
    ):
        read_tensors(path.parent)


def test_names_must_be_text(path: Path) -> None:
    torch.save({0: torch.ones(1)}, path)
    with pytest.raises(ModelError, match=r"0 \(Tensor\)"):
        read_tensors(path.parent)


def test_what_is_no_dict_is_refused(path: Path) -> None:
    torch.save([torch.ones(1)], path)
    with pytest.raises(ModelError, match="asked for a dict of tensors by name, found a list"):
        read_tensors(path.parent)


@pytest.mark.parametrize("save", [zipped, legacy])
@pytest.mark.parametrize("trust", [False, True])
def test_a_truncated_pickle(path: Path, tensors: Tensors, save: Save, trust: bool) -> None:
    save(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=rf"\({len(whole) // 2:,} bytes\) .* cut short or damaged"):
        read_tensors(path.parent, trust_pickle=trust)


@pytest.mark.parametrize("content", [b"", b"no pickle at all", b"\x80\x04\x95"])
def test_what_is_no_pickle(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"is no file of tensors written by torch\.save"):
        read_tensors(path.parent)
