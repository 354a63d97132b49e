"""Saved states: what a model remembers of some sequences, as a file that every engine of the same model reads.

    write_state(path, records, identity=…)      # safetensors: a few MB, whatever the length of the text
    records = read_state(path, shell, identity=…)

The file has the tensors of `LayerRecord` for each sequence and layer. Its header names the model, whose digest must be
the reader's, and holds a digest of the tensors, so that neither a foreign state nor a damaged one is ever taken.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssmquant.errors import CheckpointError
from ssmquant.families import Shell
from ssmquant.files import combined, digests
from ssmquant.modules.mixer import Mixer

__all__ = ["LayerRecord", "SequenceRecord", "layer_records", "read_state", "write_state"]

_FORMAT = "ssmquant state"
_VERSION = 1
_PENDING = ("x", "B", "dt")


@dataclass(frozen=True)
class LayerRecord:
    """What one mixer remembers of one sequence, as `ssmquant.modules.state` has it, without the batch.

    Attributes:
        conv: newest inputs of the convolution ``[channels, d_conv]``.
        ssm: recurrent state ``[H, P, N]`` or ``[d_inner, N]``, at its last rounding if it is a reduced one.
        pending: ``x``, ``B`` and ``dt`` of the tokens since then, ``[tokens, channels]`` each, and ``x_scale`` and so
            on where a token has its own; empty if there are none. Their C is never needed again.
    """

    conv: Tensor
    ssm: Tensor
    pending: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceRecord:
    """What a model remembers of one sequence.

    Attributes:
        tokens: how many tokens it has seen.
        layers: of each mixer.
    """

    tokens: int
    layers: tuple[LayerRecord, ...]


def layer_records(shell: Shell, tokens: int) -> list[LayerRecord]:
    """Return empty tensors of the shapes and dtypes that a sequence of so many tokens has in each layer.

    Args:
        shell: the model.
        tokens: tokens that the sequence has seen.
    """
    dtype = shell.final_norm.weight.dtype
    with torch.device("meta"):
        return [_empty_record(block.mixer, tokens, dtype) for block in shell.blocks]


def _empty_record(mixer: Mixer, tokens: int, dtype: torch.dtype) -> LayerRecord:
    state = mixer.initial_state(1, dtype)
    interval = mixer.state.interval
    count = tokens % interval if interval else 0
    pending = {}
    for name in _PENDING if count else ():
        site = mixer.site(name)
        codes = site.scheme.kind == "int"
        pending[name] = torch.empty(count, site.channels, dtype=torch.int8 if codes else dtype)
        if site.scheme.dynamic:
            pending[f"{name}_scale"] = torch.empty(count, 1, dtype=torch.float32)
    return LayerRecord(state.conv[0].to("meta"), state.ssm[0].to("meta"), pending)


def write_state(path: str | Path, records: Sequence[SequenceRecord], *, identity: str) -> None:
    """Write sequences to a file, whole or not at all; a file that is there is replaced.

    Args:
        path: the file.
        records: the sequences.
        identity: of the model.

    Raises:
        CheckpointError: the file cannot be written.
    """
    target = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _named(records).items()}
    header = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "model": identity,
        "tokens": json.dumps([record.tokens for record in records]),
        "digest": combined(digests(tensors)),
    }
    partial = target.with_name(f".{target.name}.partial-{secrets.token_hex(4)}")
    try:
        save_file(tensors, partial, metadata=header)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the state cannot be written to {target}: {error}; choose another place or free some space"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _named(records: Sequence[SequenceRecord]) -> dict[str, Tensor]:
    return {
        f"{row}.{index}.{name}": tensor
        for row, record in enumerate(records)
        for index, layer in enumerate(record.layers)
        for name, tensor in ({"conv": layer.conv, "ssm": layer.ssm} | dict(layer.pending)).items()
    }


def read_state(path: str | Path, shell: Shell, *, identity: str) -> list[SequenceRecord]:
    """Return the sequences of a file that `write_state` wrote.

    Args:
        path: the file.
        shell: the model that is to go on from them.
        identity: of this model.

    Raises:
        CheckpointError: the file is missing, damaged, no state, of another version, or of another model.
    """
    source = Path(path)
    try:
        with safe_open(source, framework="pt") as file:
            header: dict[str, str] = file.metadata() or {}
            _check_header(source, header, identity)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a mapping
        if combined(digests(tensors)) != header.get("digest"):
            raise CheckpointError(
                f"{source} is damaged: its content is not what was written; read the text again"
            )
        positions = json.loads(header["tokens"])
        records = [_record(shell, tensors, row, int(tokens)) for row, tokens in enumerate(positions)]
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{source} cannot be read as a saved state: {error}; it is missing, cut short or another kind of file"
        ) from error
    return records


def _check_header(source: Path, header: Mapping[str, Any], identity: str) -> None:
    if header.get("format") != _FORMAT:
        raise CheckpointError(f"{source} is no saved state; give a file that state.save() wrote")
    if header.get("version") != str(_VERSION):
        raise CheckpointError(
            f"{source} is a state of version {header.get('version')}, this ssmquant reads version {_VERSION}; "
            "read the text again"
        )
    if header.get("model") != identity:
        raise CheckpointError(
            f"{source} is a state of another model (its digest is {str(header.get('model'))[:8]}…, this model's "
            f"{identity[:8]}…); load it with the model that wrote it, or read the text again"
        )


def _record(shell: Shell, tensors: Mapping[str, Tensor], row: int, tokens: int) -> SequenceRecord:
    layers = []
    for index, expected in enumerate(layer_records(shell, tokens)):
        found = {}
        for name, like in ({"conv": expected.conv, "ssm": expected.ssm} | dict(expected.pending)).items():
            tensor = tensors[f"{row}.{index}.{name}"]
            if tensor.shape != like.shape or tensor.dtype != like.dtype:
                raise ValueError(
                    f"{name} of layer {index} is {tensor.dtype} {list(tensor.shape)}, "
                    f"not {like.dtype} {list(like.shape)}"
                )
            found[name] = tensor
        layers.append(LayerRecord(found.pop("conv"), found.pop("ssm"), found))
    return SequenceRecord(tokens, tuple(layers))
