"""Fingerprints of tensors.

Two tensors have the same one when dtype, shape and every bit agree.

    before = digests(model.state_dict())
    assert not compare(before, digests(loaded))
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

__all__ = ["combined", "compare", "digest", "digests"]

_HEX_DIGITS = 32  # 128 bits: no accident repeats one


def digest(tensor: torch.Tensor) -> str:
    """Return 32 hexadecimal digits of the SHA-256 of dtype, shape and bytes (as in memory, row-major).

    Args:
        tensor: any shape, any dtype of whole bytes, any device.
    """
    sha = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}\n".encode())
    # As uint8, since NumPy has no bfloat16 and no one-byte floats; flat, since torch re-views no scalars.
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    sha.update(flat.numpy().data)
    return sha.hexdigest()[:_HEX_DIGITS]


def digests(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the digest of each tensor, in order of name."""
    return {name: digest(tensors[name]) for name in sorted(tensors)}


def combined(digests: Mapping[str, str]) -> str:
    """Return one digest for all, whatever the order they come in.

    Args:
        digests: name to digest, as `digests` returns them.
    """
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:_HEX_DIGITS]


def compare(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Name every tensor in which two sets of digests disagree.

    Args:
        expected: the digests as recorded.
        found: the digests as computed now.

    Returns:
        One line a tensor, in order of name; empty when all agree.
    """
    lines = []
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            lines.append(f"{name}: recorded, but missing")
        elif name not in expected:
            lines.append(f"{name}: found, but not recorded")
        elif expected[name] != found[name]:
            lines.append(f"{name}: differs (recorded {expected[name][:8]}…, found {found[name][:8]}…)")
    return lines
