"""What commands print with: tables and text to stdout, progress and errors to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from rich.console import Console

__all__ = ["print_seconds", "printable", "size", "stderr", "stdout"]

# Columns where the output is no terminal: wide enough that a table in a file or pipe is not folded.
_FILE_WIDTH = 160
# C0 and C1 control characters except tab and newline: a model's text must not steer the terminal.
_CONTROL = dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")


def stdout() -> Console:
    """Return the console for results."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
    return Console(highlight=False, width=width)


def stderr() -> Console:
    """Return the console for progress, notes and errors."""
    return Console(highlight=False, stderr=True)


def printable(text: str) -> str:
    """Return text of a model or file without characters that would steer the terminal."""
    return text.translate(_CONTROL)


def size(count: float) -> str:
    """Return a number of bytes in words: ``15.3 MB`` (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def print_seconds(console: Console, seconds: Mapping[str, float]) -> None:
    """Print how long each step took, on one line."""
    console.print("time: " + ", ".join(f"{what} {taken:.1f} s" for what, taken in seconds.items()))
