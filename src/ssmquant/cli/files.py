"""Files that commands write for machines: whole or not at all."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmquant.errors import InputError

__all__ = ["require_place", "write_json"]


def require_place(path: Path | None) -> None:
    """Refuse, before any work, a file that could not be written at its end.

    Args:
        path: the file asked for; None when none was.

    Raises:
        InputError: its folder does not exist, or the path is a folder.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"--json {path} is a folder; give the name of a file in it")
    if not path.absolute().parent.is_dir():
        raise InputError(f"--json {path}: there is no folder {path.parent}; make it first")


def write_json(path: Path | None, value: Mapping[str, Any]) -> None:
    """Write `value` to `path` as UTF-8 JSON, replacing it in one step; do nothing for None."""
    if path is None:
        return
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
