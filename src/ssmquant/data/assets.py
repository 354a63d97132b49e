"""The files that ship inside the package: a small trained model, and text."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from ssmquant.errors import DataError

__all__ = ["asset", "builtin_model"]


def asset(name: str) -> Path:
    """Return the path of a file or folder that ships inside the package, such as ``text/eval/en.jsonl``.

    Raises:
        DataError: the installation lacks it.
    """
    path = Path(str(resources.files("ssmquant") / "assets" / name))
    if not path.exists():
        raise DataError(f"asset {name!r}: not in this installation (looked for {path}); reinstall ssmquant")
    return path


def builtin_model() -> Path:
    """Return the folder of the embedded demonstration model (Mamba-2, 7.7 M parameters)."""
    return asset("mamba2-8m")
