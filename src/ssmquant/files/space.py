"""Recognising a full disk, however the library that met it reports it, and saying so in bytes."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

__all__ = ["bytes_free", "is_full", "out_of_space"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def is_full(error: BaseException) -> bool:
    """Return whether `error` means that no space (or no quota) is left."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    # safetensors writes from Rust and hands on only the text of the operating system's error.
    return any(os.strerror(code) in str(error) for code in _FULL)


def bytes_free(folder: Path) -> int | None:
    """Return the bytes free on the file system of `folder`, or None where the system does not say."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def out_of_space(what: str, folder: Path, *, needed: int | None, free: int | None) -> str:
    """Return the message for a full disk.

    Args:
        what: what was being written.
        folder: where.
        needed: bytes that `what` takes, None where unknown.
        free: bytes that were free, None where unknown.
    """
    asked = f"{needed:,} bytes are needed" if needed is not None else "the bytes needed are not known"
    found = f"{free:,} are free" if free is not None else "the bytes free are not known"
    return f"no space left while writing {what} in {folder}: {asked}, {found}; free some, or use another disk"
