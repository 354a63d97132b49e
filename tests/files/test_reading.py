from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssmquant.errors import ModelError
from ssmquant.files import digests, read_tensors

Tensors = dict[str, torch.Tensor]
FILES = ("one.safetensors", "two.safetensors")


def split(tensors: Tensors) -> tuple[Tensors, Tensors]:
    names = list(tensors)
    return {name: tensors[name] for name in names[:2]}, {name: tensors[name] for name in names[2:]}


def indexed(folder: Path, shards: tuple[Tensors, Tensors], weight_map: Mapping[str, object]) -> None:
    for file, shard in zip(FILES, shards, strict=True):
        save_file(shard, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def right_map(shards: tuple[Tensors, Tensors]) -> dict[str, str]:
    return {name: file for file, shard in zip(FILES, shards, strict=True) for name in shard}


def test_one_file(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    assert digests(read_tensors(tmp_path)) == digests(tensors)


def test_several_files(tmp_path: Path, tensors: Tensors) -> None:
    shards = split(tensors)
    indexed(tmp_path, shards, right_map(shards))
    assert digests(read_tensors(tmp_path)) == digests(tensors)


def test_several_pickles(tmp_path: Path, tensors: Tensors) -> None:
    shards = split(tensors)
    for number, shard in enumerate(shards):
        torch.save(shard, tmp_path / f"pytorch_model-{number}.bin")
    weight_map = {
        name: f"pytorch_model-{number}.bin" for number, shard in enumerate(shards) for name in shard
    }
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert digests(read_tensors(tmp_path)) == digests(tensors)


def test_safetensors_go_before_pickles(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert read_tensors(tmp_path)["a"].tolist() == [1, 1]


def test_changing_a_tensor_changes_no_file(tmp_path: Path, tensors: Tensors) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    for tensor in read_tensors(tmp_path).values():
        tensor.zero_()
    assert digests(read_tensors(tmp_path)) == digests(tensors)


def test_a_folder_without_tensors_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds no tensors: asked for .* found config\.json"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("keep", [-1, 0, 5, 40])
def test_a_truncated_file(tmp_path: Path, tensors: Tensors, keep: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    expected = (
        f"is cut short: its header promises {len(whole):,} bytes, the file has {len(whole) - 1:,}"
        if keep == -1
        else f"has {keep:,} bytes and no readable header"
    )
    with pytest.raises(ModelError, match=f"model.safetensors {expected}.*copy it again"):
        read_tensors(tmp_path)


def test_a_damaged_header(tmp_path: Path, tensors: Tensors) -> None:
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F99"'))
    with pytest.raises(ModelError, match="is damaged"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("header", [b"[1]", b'{"a": 1}', b'{"a": {"data_offsets": []}}', b"\xff\xff"])
def test_a_header_that_is_no_header(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="and no readable header"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_git_lfs_pointer(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    with pytest.raises(ModelError, match=r"git-lfs pointer.*git lfs pull"):
        read_tensors(tmp_path)


def test_an_index_that_names_a_missing_file(tmp_path: Path, tensors: Tensors) -> None:
    shards = split(tensors)
    indexed(tmp_path, shards, right_map(shards))
    (tmp_path / FILES[1]).unlink()
    with pytest.raises(ModelError, match=r"names 2 files, 1 of them missing .* two\.safetensors"):
        read_tensors(tmp_path)


def test_an_index_that_names_a_missing_tensor(tmp_path: Path, tensors: Tensors) -> None:
    shards = split(tensors)
    indexed(tmp_path, shards, right_map(shards) | {"lost.weight": FILES[0]})
    with pytest.raises(ModelError, match=r"lost\.weight is promised in one\.safetensors and is not there"):
        read_tensors(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path, tensors: Tensors) -> None:
    one, two = split(tensors)
    twice = next(iter(one))
    indexed(tmp_path, (one, two | {twice: one[twice]}), right_map((one, two)))
    with pytest.raises(
        ModelError, match=rf"{twice} is in one\.safetensors and in two\.safetensors \(and 1 more\)"
    ):
        read_tensors(tmp_path)


def test_a_tensor_that_the_index_does_not_name(tmp_path: Path, tensors: Tensors) -> None:
    one, two = split(tensors)
    indexed(tmp_path, (one | {"extra": torch.ones(1)}, two), right_map((one, two)))
    with pytest.raises(ModelError, match=r"extra is in one\.safetensors, which the index does not say"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("file", ["../outside.safetensors", "/etc/passwd", "", 3])
def test_an_index_must_not_reach_outside_its_folder(tmp_path: Path, tensors: Tensors, file: object) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "outside.safetensors")
    indexed(folder, split(tensors), {"a": file})
    with pytest.raises(ModelError, match="a must be in a file of this folder, found"):
        read_tensors(folder)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_an_index_without_a_map(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelError, match="has no weight_map"):
        read_tensors(tmp_path)
