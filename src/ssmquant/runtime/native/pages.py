"""Memory that is mapped from files, which can be given back to the system once its content has been packed.

Tensors of a loaded checkpoint are pages of its file. After they have been read they count as this process's memory
until somebody else wants it; given back, they are read from the file again if they are asked for again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

__all__ = ["FilePages"]


class _Mapping(NamedTuple):
    """Addresses that are mapped from a file and unchanged since."""

    start: int
    stop: int


class FilePages:
    """The file mappings of this process, at the time it is made, whose pages are as the file has them."""

    def __init__(self) -> None:
        self._mappings = _clean_mappings() if sys.platform == "linux" else []

    def hold(self, tensor: Tensor) -> bool:
        """Return whether a contiguous tensor is an unchanged part of a file."""
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        return any(mapping.start <= start and stop <= mapping.stop for mapping in self._mappings)


def _clean_mappings() -> list[_Mapping]:
    """Return the mappings of files without a page that was changed after it was read."""
    found: list[_Mapping] = []
    current: _Mapping | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first and not first.endswith(":"):
            start, stop = (int(address, 16) for address in first.split("-"))
            _permissions, _offset, _device, inode = rest.split()[:4]
            current = _Mapping(start, stop) if inode != "0" else None
        elif current and first == "Anonymous:":  # what a private page becomes when it is written to
            if rest.split()[0] == "0":
                found.append(current)
            current = None
    return found
