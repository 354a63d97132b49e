"""The tensors of a model folder: one file or several with an index, safetensors before pickles.

A file cut short by an interrupted download is told from one that is damaged, and an index is held to its files.
Nothing here knows which tensors a model needs: see `checking`.

    tensors = read_tensors(Path("mamba2-130m"))
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ssmquant.errors import ModelError
from ssmquant.files.json_files import read_json
from ssmquant.files.layout import PICKLE, SAFETENSORS, contents
from ssmquant.files.pickles import read_pickle

__all__ = ["read_tensors"]

_LFS_POINTER = b"version https://git-lfs"
_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header, little-endian

_Reader = Callable[[Path], dict[str, torch.Tensor]]


def read_tensors(folder: Path, *, trust_pickle: bool = False) -> dict[str, torch.Tensor]:
    """Read every tensor of a model folder to the CPU, in the dtype of the file.

    Args:
        folder: the model folder; looked for in it, in this order: model.safetensors,
            model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json.
        trust_pickle: let a pickle run the code it names. Only for a file whose author you trust.

    Returns:
        The tensors by name. Changing one changes no file.

    Raises:
        ModelError: no tensors are there, a file is truncated, damaged or no file of tensors, or an index and
            its files disagree.
    """
    readers: dict[str, _Reader] = {
        SAFETENSORS: _read_safetensors,
        PICKLE: partial(read_pickle, trust=trust_pickle),
    }
    for name, reader in readers.items():
        if (folder / name).is_file():
            return _read_file(folder / name, reader)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return _read_indexed(index, reader)
    raise ModelError(
        f"{folder} holds no tensors: asked for {SAFETENSORS} or {PICKLE} (or the index of one), found "
        f"{contents(folder)}; download or copy the missing file"
    )


def _read_file(path: Path, reader: _Reader) -> dict[str, torch.Tensor]:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            raise ModelError(
                f"{path} is a git-lfs pointer, not the tensors; run `git lfs pull` in its folder"
            )
        return reader(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read: {error.strerror or error}; check its permissions"
        ) from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        size, promised = path.stat().st_size, _promised_bytes(path)
        if promised is None:
            found = f"has {size:,} bytes and no readable header"
        elif promised > size:
            found = f"is cut short: its header promises {promised:,} bytes, the file has {size:,}"
        else:
            found = f"is damaged ({size:,} bytes)"
        raise ModelError(f"{path} {found} ({error}); download or copy it again") from error


def _promised_bytes(path: Path) -> int | None:
    """Return the size that the header of a safetensors file asks for, None when it has no readable header."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if not 0 < length <= path.stat().st_size - _LENGTH_BYTES:
            return None
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            return _LENGTH_BYTES + length + max(ends, default=0)
        except (ValueError, AttributeError, LookupError, TypeError):
            return None


def _read_indexed(index: Path, reader: _Reader) -> dict[str, torch.Tensor]:
    """Read the files that an index names and hold them to it: each tensor in its file, once, and no other."""
    shards = _shards(index)
    absent = [shard for shard in shards if not (index.parent / shard).is_file()]
    if absent:
        raise ModelError(
            f"{index.name} names {len(shards)} files, {len(absent)} of them missing in {index.parent}: "
            f"{', '.join(absent[:8])}; download or copy them"
        )
    tensors: dict[str, torch.Tensor] = {}
    owner: dict[str, str] = {}
    for shard, promised in shards.items():
        held = _read_file(index.parent / shard, reader)
        problems = [
            *(f"{name} is in {owner[name]} and in {shard}" for name in held if name in owner),
            *(f"{name} is promised in {shard} and is not there" for name in promised if name not in held),
            *(f"{name} is in {shard}, which the index does not say" for name in held if name not in promised),
        ]
        if problems:
            raise ModelError(
                f"{index} and its files disagree: {problems[0]}"
                + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")
                + "; the files are of different saves: copy the whole folder again"
            )
        tensors.update(held)
        owner.update(dict.fromkeys(held, shard))
    return tensors


def _shards(index: Path) -> dict[str, set[str]]:
    """Return {file: names of its tensors} of an index, files in order of name."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map from tensor names to files; download or copy it again")
    shards: defaultdict[str, set[str]] = defaultdict(set)
    for name, shard in weight_map.items():
        # A file name alone: an index must not reach outside its folder.
        if not isinstance(shard, str) or (index.parent / shard).parent != index.parent:
            raise ModelError(
                f"{index}: {name} must be in a file of this folder, found {shard!r}; mend the index"
            )
        shards[shard].add(name)
    return dict(sorted(shards.items()))
