"""Finished rows on disk, so that a comparison that was broken off goes on where it stopped.

A row is stored under a hash of all that it depends on. One that cannot be read is measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssmquant.report.row import Row
from ssmquant.report.writing import write_text

__all__ = ["RowStore"]

_FORMAT = 1


class RowStore:
    """A folder of rows.

    Args:
        folder: made when the first row is put into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def get(self, identity: Mapping[str, Any]) -> Row | None:
        """Return the row that was put under this identity, if there is one.

        Args:
            identity: all that a row depends on, as plain data.
        """
        try:
            content = json.loads(self._path(identity).read_text(encoding="utf-8"))
            return Row.from_record(content["row"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def put(self, identity: Mapping[str, Any], row: Row) -> None:
        """Store a row under its identity."""
        content = {"identity": dict(identity), "row": row.to_record()}
        write_text(self._path(identity), json.dumps(content, ensure_ascii=False) + "\n")

    def _path(self, identity: Mapping[str, Any]) -> Path:
        text = json.dumps({"format": _FORMAT, **identity}, sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
