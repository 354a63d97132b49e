"""The names of a model folder's files, and how a folder's content is told in an error message."""

from __future__ import annotations

from pathlib import Path

__all__ = ["CONFIG", "PICKLE", "SAFETENSORS", "contents"]

CONFIG = "config.json"
SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"

_SHOWN = 8


def contents(folder: Path) -> str:
    """Return the names in `folder`, the first few of them, folders with a slash behind."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
