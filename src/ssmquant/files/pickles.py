"""Tensors pickled by `torch.save` (pytorch_model.bin), without running what the pickle asks for.

A pickle can name any function and have it called. torch's weights-only reader refuses everything but tensors
and plain containers; it is used unless the user says in so many words that the file is trusted.

    tensors = read_pickle(Path("pytorch_model.bin"), trust=False)
"""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch

from ssmquant.errors import ModelError

__all__ = ["read_pickle"]

_ZIP = b"PK\x03\x04"
_NAMED_CODE = re.compile(r"GLOBAL (\S+)")


def read_pickle(path: Path, *, trust: bool) -> dict[str, torch.Tensor]:
    """Read a file of named tensors to the CPU.

    Args:
        path: a file written by `torch.save(state_dict)`, in the current (zip) or the older format.
        trust: unpickle without restriction; code named by the file then runs.

    Returns:
        The tensors by name, without gradients.

    Raises:
        ModelError: the file is damaged, asks for code to be run, or holds something besides named tensors.
    """
    with path.open("rb") as file:
        mappable = file.read(len(_ZIP)) == _ZIP
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of old pickle protocols before it reads or refuses them
        try:
            value = torch.load(path, map_location="cpu", weights_only=not trust, mmap=mappable)
        except OSError:
            raise
        except Exception as error:  # a damaged or hostile pickle can raise anything
            raise ModelError(_refusal(path, error)) from error
    return _named_tensors(path, value)


def _refusal(path: Path, error: Exception) -> str:
    code = _NAMED_CODE.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if code:
        return (
            f"{path} asks to run {code[1]} while it is read, which tensors do not need; refused. Ask for a "
            "safetensors file, or pass trust_pickle=True if you trust whoever wrote this one"
        )
    size = path.stat().st_size
    return (
        f"{path} ({size:,} bytes) is no file of tensors written by torch.save, or is cut short or damaged "
        f"({type(error).__name__}); download or copy it again"
    )


def _named_tensors(path: Path, value: Any) -> dict[str, torch.Tensor]:
    if not isinstance(value, dict):
        raise ModelError(
            f"{path}: asked for a dict of tensors by name, found a {type(value).__name__}; "
            "save model.state_dict()"
        )
    odd = [
        f"{key!r} ({type(item).__name__})"
        for key, item in value.items()
        if not (isinstance(key, str) and isinstance(item, torch.Tensor))
    ]
    if odd:
        raise ModelError(
            f"{path}: asked for tensors by name alone, found {len(odd)} other entries: {', '.join(odd[:4])}; "
            "a training checkpoint must be reduced to model.state_dict() first"
        )
    return {key: item.detach() for key, item in value.items()}
