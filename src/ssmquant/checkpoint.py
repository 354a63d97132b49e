"""Quantised model folders: written whole or not at all, loaded without code from the file, verified on request.

config.json            transformers' config, with the plan under "quantization_config"
model.safetensors      codes, scales and floats, under the names of the modules
integrity.json         digest of every tensor, and of the logits of a fixed sequence (the golden logits)
tokenizer files
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssmquant._version import __version__
from ssmquant.errors import CheckpointError, InputError, ModelError
from ssmquant.families import Config, Shell, build
from ssmquant.files import (
    TensorSpec,
    check_tensors,
    compare,
    digest,
    digests,
    read_config,
    read_json,
    read_tensors,
    resolve,
    write_json,
    write_tensors,
    writing,
)
from ssmquant.ops.registry import use_backend
from ssmquant.planning import Plan

if TYPE_CHECKING:
    from ssmquant.model import Model

__all__ = [
    "FORMAT_VERSION",
    "METHOD",
    "Verification",
    "check_version",
    "is_quantised",
    "load_quantised",
    "recorded_digests",
    "save",
    "verify",
]

METHOD = "ssmquant"
FORMAT_VERSION = 1
_GOLDEN_TOKENS = 64
_INTEGRITY = "integrity.json"


@dataclass(frozen=True)
class Verification:
    """Result of `verify`.

    Attributes:
        ok: whether the folder is what was saved.
        lines: what was found, for people.
    """

    ok: bool
    lines: list[str]


def is_quantised(raw_config: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of a folder that we quantised."""
    method = raw_config.get("quantization_config")
    return isinstance(method, dict) and method.get("quant_method") == METHOD


def save(model: Model, path: Path, *, force: bool) -> None:
    """Write a quantised model.

    Args:
        model: the model; it has a plan.
        path: folder to make.
        force: replace an existing model folder.

    Raises:
        ModelError: the model is a float one.
        CheckpointError: the path exists and force is off, or cannot be written; nothing half is left.
    """
    if model.plan is None:
        raise ModelError(f"{model.name} is a float model, which has its folder already; quantize it first")
    tensors = model.shell.model.state_dict()
    config = model.config.to_dict()
    config["quantization_config"] = {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "ssmquant_version": __version__,
        "plan": model.plan.to_json(),
        "calibration": model.provenance,
        "source_model": Path(model.name).name,
    }
    with writing(path, force=force) as folder:
        write_json(folder / "config.json", config)
        write_tensors(folder, tensors, {"format": "pt", "producer": f"ssmquant {__version__}"})
        write_json(folder / _INTEGRITY, {"tensors": digests(tensors), "golden": _golden(model)})
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(str(folder))


def check_version(entry: Mapping[str, Any], where: str) -> None:
    """Raise `CheckpointError` unless a ``quantization_config`` entry is of the version that this code reads.

    Args:
        entry: the entry of config.json.
        where: the folder, for the message.
    """
    version = entry.get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{where}: written in format version {version!r}, this is ssmquant {__version__} which reads version "
            f"{FORMAT_VERSION}; install a fitting ssmquant or quantise the float model again"
        )


def load_quantised(folder: Path, config: Config) -> tuple[Shell, Plan, dict[str, Any]]:
    """Return the model, plan and provenance of a folder that `save` wrote.

    Args:
        folder: the folder.
        config: its config.

    Raises:
        CheckpointError: it was written by another format version, or is damaged.
    """
    entry = read_config(folder)["quantization_config"]
    check_version(entry, str(folder))
    plan = Plan.from_json(entry.get("plan") or {}, config)
    try:
        shell = build(config, plan.schemes, hadamard=plan.hadamard, tied=plan.tied)
        expected = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in shell.model.state_dict().items()}
        tensors = read_tensors(folder)
        check_tensors(tensors, expected, source=str(folder))
    except CheckpointError:
        raise
    except InputError as error:  # of a part that cannot know that the folder is one of ours
        raise CheckpointError(f"the quantised folder {folder.name} is damaged: {error}") from error
    shell.model.load_state_dict(tensors, strict=True, assign=True)
    provenance = entry.get("calibration")
    return shell, plan, provenance if isinstance(provenance, dict) else {}


def recorded_digests(folder: Path) -> dict[str, str] | None:
    """Return the digest of every tensor as it was saved; None where the folder does not tell.

    Args:
        folder: a folder that `save` wrote.
    """
    try:
        return _recorded(folder)[0]
    except InputError:
        return None


def verify(path: str | Path) -> Verification:
    """Recompute the digests and golden logits of a quantised folder.

    Args:
        path: the folder.

    Returns:
        whether every tensor is as it was saved and the logits come out bit for bit; logits that differ while the
        tensors do not are reported with both environments (another processor or PyTorch sums floats in another order).

    Raises:
        ModelError, CheckpointError: it is not a quantised folder, or cannot be loaded at all.
    """
    from ssmquant.loading import load

    folder = resolve(path)
    if not is_quantised(read_config(folder)):
        raise CheckpointError(
            f"{path} was not quantised by ssmquant (config.json has no plan of ours); nothing to verify"
        )
    recorded, golden = _recorded(folder)
    found = read_tensors(folder)
    differing = compare(recorded, digests(found))
    if differing:
        return Verification(
            False, [f"{len(differing)} of {len(found)} tensors are not as saved:", *differing]
        )
    now = _golden(load(folder))
    lines = [f"{len(found)} tensors as saved"]
    if now["logits"] == golden["logits"]:
        return Verification(True, [*lines, "golden logits bit for bit"])
    if now["environment"] == golden.get("environment"):
        return Verification(
            False,
            [*lines, "golden logits differ in the same environment: config.json or the code has changed"],
        )
    close = _close(now["last"], golden["last"])
    lines += [
        f"golden logits {'agree up to float sums' if close else 'differ'}: saved under {golden.get('environment')}, "
        f"computed under {now['environment']}"
    ]
    return Verification(close, lines)


def _recorded(folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the digests and the golden logits that were saved."""
    integrity = read_json(folder / _INTEGRITY)
    tensors, golden = integrity.get("tensors"), integrity.get("golden")
    if not (isinstance(tensors, dict) and isinstance(golden, dict) and {"logits", "last"} <= golden.keys()):
        raise CheckpointError(
            f"{folder / _INTEGRITY} has no digests and golden logits, so nothing can be verified; "
            "copy the folder again"
        )
    return tensors, golden


@use_backend("reference")
def _golden(model: Model) -> dict[str, Any]:
    """Return the hash of the logits of a fixed sequence, with the likeliest tokens after it and the environment.

    The logits are the reference's, so that they are the same wherever there are kernels and wherever there are none.
    """
    ids = torch.tensor([[(i * 7919 + 13) % model.vocab_size for i in range(_GOLDEN_TOKENS)]])
    logits = model.logits(ids)
    values, tokens = logits[0, -1].topk(8)
    return {
        "tokens": _GOLDEN_TOKENS,
        "logits": digest(logits),
        "last": [[token, value] for token, value in zip(tokens.tolist(), values.tolist(), strict=True)],
        "environment": {
            "torch": torch.__version__,
            "machine": platform.machine(),
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
    }


def _close(now: list[list[float]], saved: list[list[float]]) -> bool:
    """Return whether the likeliest tokens have the same logits up to float sums and a few roundings."""
    if len(now) != len(saved):
        return False
    a, b = torch.tensor(now), torch.tensor(saved)
    return bool((a[:, 1] - b[:, 1]).abs().max() <= 1e-2 * b[:, 1].abs().max())
