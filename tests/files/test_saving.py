from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import SafetensorError, safe_open

from ssmquant.errors import CheckpointError
from ssmquant.files import digests, read_tensors, write_tensors

Tensors = dict[str, torch.Tensor]
SAVE = "ssmquant.files.saving.save_file"


class Usage(NamedTuple):
    free: int


def test_what_is_written_is_read(tmp_path: Path, tensors: Tensors) -> None:
    write_tensors(tmp_path, tensors, {"producer": "é ☃ \x01"})
    assert digests(read_tensors(tmp_path)) == digests(tensors)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "producer": "é ☃ \x01"}


def test_any_layout_and_shared_memory(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    tensors = {
        "transposed": whole.t(),
        "tied": whole,
        "head": whole,
        "rows": whole[1:3],
        "overlapping": whole[2:],
        "expanded": torch.ones(1, 3).expand(5, 3),
        "empty": whole[:0],
        "parameter": torch.nn.Parameter(whole),
    }
    write_tensors(tmp_path, tensors, {})
    assert digests(read_tensors(tmp_path)) == digests(tensors)


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path, tensors: Tensors) -> None:
    """Of itself safetensors orders the metadata anew at every call."""
    metadata = {f"key {number} é": '"' for number in range(20)}
    written = []
    for order in (list, reversed):
        write_tensors(tmp_path, dict(order(tensors.items())), dict(order(metadata.items())))
        written.append((tmp_path / "model.safetensors").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["ENOSPC", "EDQUOT", "safetensors"],
)
def test_a_full_disk_says_how_many_bytes(
    tmp_path: Path, tensors: Tensors, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(SAVE, full)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=1234))
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with pytest.raises(CheckpointError, match=rf"no space left .* {needed} bytes are needed, 1,234 are free"):
        write_tensors(tmp_path, tensors, {})


def test_a_full_disk_on_a_system_that_counts_no_bytes(
    tmp_path: Path, tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def unknown(_: Path) -> None:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr(SAVE, full)
    monkeypatch.setattr(shutil, "disk_usage", unknown)
    with pytest.raises(CheckpointError, match="the bytes free are not known"):
        write_tensors(tmp_path, tensors, {})


def test_other_errors_are_not_called_a_full_disk(
    tmp_path: Path, tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(SAVE, broken)
    with pytest.raises(OSError, match="Input/output error"):
        write_tensors(tmp_path, tensors, {})
