"""JSON files of a model folder: read with errors that name file and line, written readably.

`Infinity` and `NaN` are taken both as Python writes them and as transformers tags them
(`{"__float__": "Infinity"}`), since configs of both kinds are in use. A key given twice is an error: one of
the two values would be lost.

    config = read_config(Path("mamba2-130m"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmquant.errors import ModelError
from ssmquant.files.layout import CONFIG

__all__ = ["read_config", "read_json", "write_json"]

_FLOAT_TAG = "__float__"
_FLOATS = {"Infinity": float("inf"), "-Infinity": float("-inf"), "NaN": float("nan")}


def _object(pairs: list[tuple[str, Any]]) -> Any:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"the key {twice[0]!r} is given twice in one object")
    if value.keys() == {_FLOAT_TAG} and value[_FLOAT_TAG] in _FLOATS:
        return _FLOATS[value[_FLOAT_TAG]]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Args:
        path: the file, UTF-8.

    Returns:
        The object.

    Raises:
        ModelError: the file is missing, unreadable, not UTF-8, not JSON, or holds no object.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}; pass a folder that has it") from error
    try:
        # utf-8-sig: editors on Windows put a byte order mark in front.
        value = json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ModelError(
            f"{path}: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x}); save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{path}: not valid JSON, line {error.lineno}, column {error.colno}: {error.msg}; "
            "mend the file or copy it again"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not usable JSON: {error}; mend the file or copy it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: asked for a JSON object ({{…}}), found a {type(value).__name__}")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json of a model folder.

    Args:
        folder: the model folder.

    Returns:
        Its content, as `read_json` reads it.

    Raises:
        ModelError: as `read_json`.
    """
    return read_json(folder / CONFIG)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented UTF-8 JSON, keys in the order given.

    Infinite floats are written as Python and every version of transformers read them (`Infinity`).

    Args:
        path: the file; replaced when it exists.
        value: the object.
    """
    text = json.dumps(dict(value), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
