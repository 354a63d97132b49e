"""Between the extension's states and `LayerRecord`: the same codes, in the layouts of the kernels or of the modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ssmquant.families import Block, Shell
from ssmquant.modules.mamba1 import Mamba1Mixer
from ssmquant.runtime.state_file import LayerRecord, SequenceRecord

__all__ = ["from_record", "to_record"]

_PENDING = ("x", "B", "dt")


def to_record(model: Any, shell: Shell, sequence: Any) -> SequenceRecord:
    """Return what a sequence of the extension's holds.

    Args:
        model: the extension's model.
        shell: the same model's stages.
        sequence: the extension's state of one sequence.
    """
    layers = tuple(_to_layer(model, block, sequence, index) for index, block in enumerate(shell.blocks))
    return SequenceRecord(int(sequence.tokens), layers)


def _to_layer(model: Any, block: Block, sequence: Any, index: int) -> LayerRecord:
    mixer, interval = block.mixer, block.mixer.state.interval
    shapes = mixer.initial_state(1, torch.float32)
    conv = _tensor(model.window(sequence, index), torch.int8).view(shapes.conv.shape[2], -1).T
    ssm = _tensor(model.recurrent(sequence, index), shapes.ssm.dtype)
    if isinstance(mixer, Mamba1Mixer):  # there the channels are innermost
        ssm = ssm.view(shapes.ssm.shape[2], -1).T
    pending = {}
    count = int(sequence.tokens) % interval if interval else 0
    for place, name in enumerate(_PENDING if count else ()):
        codes = _tensor(model.pending(sequence, index, place), torch.int8)
        parts = _parts(block, name)
        pending[name] = codes.view(parts, interval, -1)[:, :count].transpose(0, 1).flatten(1)
    return LayerRecord(conv, ssm.reshape(shapes.ssm.shape[1:]), pending)


def from_record(model: Any, shell: Shell, record: SequenceRecord) -> Any:
    """Return the extension's state of one sequence.

    Args:
        model: the extension's model.
        shell: the same model's stages.
        record: what the sequence holds; of this model (`read_state` has seen to it).
    """
    empty = torch.empty(0, dtype=torch.int8)
    layers = []
    for block, layer in zip(shell.blocks, record.layers, strict=True):
        ssm = layer.ssm.T if isinstance(block.mixer, Mamba1Mixer) else layer.ssm
        parts = [layer.conv.T, ssm, *(layer.pending.get(name, empty) for name in _PENDING)]
        layers.append([part.contiguous().flatten().view(torch.uint8) for part in parts])
    return model.restore(record.tokens, layers)


def _parts(block: Block, name: str) -> int:
    """Return into how many equal parts (heads, groups) the kernels divide the channels of a pending input."""
    mixer = block.mixer
    if isinstance(mixer, Mamba1Mixer) or name == "dt":
        return 1
    dims = mixer.site(name).dims
    return dims["ngroups"] * dims.get("heads", 1)


def _tensor(content: bytes, dtype: torch.dtype) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=dtype)
