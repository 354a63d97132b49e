"""Between the extension's states and `LayerRecord`: the same numbers, in the layouts of the kernels or of the modules.

Where the engine has the values of an int8 site's codes as floats (see `packing`), a record has the codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.families import Block, Shell
from ssmquant.modules.activation import Activation
from ssmquant.modules.mamba1 import Mamba1Mixer
from ssmquant.modules.mixer import Mixer
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
    taps = shapes.conv.shape[2]
    conv = _tensor(model.window(sequence, index), shapes.conv.numel()).view(taps, -1)
    ssm = _tensor(model.recurrent(sequence, index), shapes.ssm.numel(), shapes.ssm.dtype)
    if isinstance(mixer, Mamba1Mixer):  # there the channels are innermost
        ssm = ssm.view(shapes.ssm.shape[2], -1).T
    pending = {}
    count = int(sequence.tokens) % interval if interval else 0
    for place, name in enumerate(_PENDING if count else ()):
        site = mixer.site(name)
        found = _tensor(model.pending(sequence, index, place), interval * site.channels)
        rows = found.view(_parts(block, name), interval, -1)[:, :count].transpose(0, 1).flatten(1)
        pending[name] = _at_rest(rows, [site])
    return LayerRecord(_at_rest(conv, _window_sites(mixer)).T, ssm.reshape(shapes.ssm.shape[1:]), pending)


def from_record(model: Any, shell: Shell, record: SequenceRecord) -> Any:
    """Return the extension's state of one sequence.

    Args:
        model: the extension's model.
        shell: the same model's stages.
        record: what the sequence holds; of this model (`read_state` has seen to it).
    """
    empty = torch.empty(0, dtype=torch.int8)
    layers = []
    for index, (block, layer) in enumerate(zip(shell.blocks, record.layers, strict=True)):
        mixer = block.mixer
        ssm = layer.ssm.T if isinstance(mixer, Mamba1Mixer) else layer.ssm
        window, *pending = model.sizes(index)
        kept = [
            _as_read(layer.pending[name], [site], size == mixer.state.interval * site.channels)
            if name in layer.pending
            else empty
            for name, size in zip(_PENDING, pending, strict=True)
            for site in [mixer.site(name)]
        ]
        conv = _as_read(layer.conv.T, _window_sites(mixer), window == layer.conv.numel())
        parts = [conv, ssm, *kept]
        layers.append([part.contiguous().flatten().view(torch.uint8) for part in parts])
    return model.restore(record.tokens, layers)


def _window_sites(mixer: Mixer) -> list[Activation]:
    """Return the sites that the convolution reads side by side."""
    names = ("x_in",) if isinstance(mixer, Mamba1Mixer) else ("x_in", "B_in", "C_in")
    return [mixer.site(name) for name in names]


def _at_rest(rows: Tensor, sites: Sequence[Activation]) -> Tensor:
    """Return rows as the stages keep them: codes where all sites are int8 ones, even if the engine has their values."""
    scale = _scales(sites)
    return rows if scale is None or rows.dtype == torch.int8 else numerics.quantize(rows, scale)


def _as_read(rows: Tensor, sites: Sequence[Activation], codes: bool) -> Tensor:
    """Return rows that the stages keep as the engine has them: the reverse."""
    return rows if codes or rows.dtype != torch.int8 else numerics.dequantize(rows, _scales(sites))


def _scales(sites: Sequence[Activation]) -> Tensor | None:
    """Return the scale of each channel of some sites; None if one of them is a float site."""
    scales = [site.static_scale for site in sites]
    known = [s.expand(site.channels) for s, site in zip(scales, sites, strict=True) if s is not None]
    return torch.cat(known) if len(known) == len(sites) else None


def _parts(block: Block, name: str) -> int:
    """Return into how many equal parts (heads, groups) the kernels divide the channels of a pending input."""
    mixer = block.mixer
    if isinstance(mixer, Mamba1Mixer) or name == "dt":
        return 1
    dims = mixer.site(name).dims
    return dims["ngroups"] * dims.get("heads", 1)


def _tensor(content: bytes, count: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return bytes as so many numbers, of a dtype, or codes or floats, by their size."""
    dtype = dtype or (torch.int8 if len(content) == count else torch.float32)
    return torch.frombuffer(bytearray(content), dtype=dtype)
