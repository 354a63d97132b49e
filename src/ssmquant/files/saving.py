"""Tensors to model.safetensors.

The same tensors and metadata give the same bytes, run to run.

    write_tensors(partial, {"norm_f.weight": weight}, {"producer": "ssmquant"})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ssmquant.errors import CheckpointError
from ssmquant.files.layout import SAFETENSORS
from ssmquant.files.space import bytes_free, is_full, out_of_space

__all__ = ["write_tensors"]

_LENGTH_BYTES = 8


def write_tensors(folder: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors, from any device and in any memory layout, as one safetensors file in `folder`.

    Args:
        folder: an existing folder, normally the one that `target.writing` gives.
        tensors: by name. Those that share memory (tied weights) are each written in full.
        metadata: text for the header; `format` is set to `pt`, which transformers asks for.

    Raises:
        CheckpointError: the disk is full; says how many bytes were needed and free.
    """
    ready = _separate(tensors)
    needed = sum(tensor.nbytes for tensor in ready.values())
    free = bytes_free(folder)
    path = folder / SAFETENSORS
    try:
        save_file(ready, path, metadata={**metadata, "format": "pt"})
        _sort_metadata(path)
    except (OSError, SafetensorError) as error:
        if is_full(error):
            message = out_of_space(SAFETENSORS, folder.parent, needed=needed, free=free)
            raise CheckpointError(message) from error
        raise


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors by sorted name, contiguous on the CPU, no two of them in the same memory."""
    ready = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    end = 0
    for name in sorted(ready, key=lambda name: ready[name].data_ptr()):
        start, size = ready[name].data_ptr(), ready[name].nbytes
        if start < end and size:
            ready[name] = ready[name].clone()
        end = max(end, start + size)
    return ready


def _sort_metadata(path: Path) -> None:
    """Sort the metadata in the header, in place: safetensors' order of it changes run to run."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        # The two JSON writers agree. Were one to escape more, only the fixed order would be lost.
        if len(text) <= length:
            file.seek(_LENGTH_BYTES)
            file.write(text.ljust(length))
