"""Which tile a kernel uses: measured choices a device, and where there are none, the kernel's own rule.

A choice belongs to a device name, an op, N, K and a bucket of M (its next power of two). The package brings the
table of the devices that were measured (``tuning.json``); `record` adds choices for others to a file in the
user's cache folder, which goes before the package's. Nothing is measured while a model runs.

    tile = find("NVIDIA H200", "int8_linear", m=1, n=10576, k=2560) or the kernel's rule
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

__all__ = ["Tile", "bucket", "find", "key", "record", "table_file"]

_LOG = logging.getLogger(__name__)

Table = dict[str, dict[str, dict[str, dict[str, dict[str, int]]]]]
"""Device name -> op -> ``NxK`` -> bucket of M as text -> the fields of a `Tile`."""


@dataclass(frozen=True)
class Tile:
    """How a product ``[M, K] x [N, K]`` is cut into programs.

    Attributes:
        block_m: rows of x a program; 0: the kernel for few rows, which keeps all rows and all of K in one program.
        block_n: rows of the weight a program, or a step of one.
        block_k: columns a step; 0 where it is not a choice: all of K, or a group.
        split_k: programs that share a tile, each with a part of K.
        warps: warps a program.
        stages: depth of the pipeline of loads; for few rows, int8: steps of block_n rows a program, int4: groups that
            are loaded before they are needed.
    """

    block_m: int
    block_n: int
    block_k: int = 0
    split_k: int = 1
    warps: int = 4
    stages: int = 1


def bucket(m: int) -> int:
    """Return the next power of two: choices are made for it and serve every M down to the bucket below."""
    return 1 << max(m - 1, 0).bit_length()


def key(n: int, k: int) -> str:
    """Return the name of a weight's shape in the table."""
    return f"{n}x{k}"


def find(device: str, op: str, *, m: int, n: int, k: int) -> Tile | None:
    """Return the measured tile, or None where nothing was measured.

    Args:
        device: name of the device as its driver gives it.
        op: name of the op.
        m: rows of x.
        n: rows of the weight.
        k: columns of both.
    """
    return _choices(device, op).get((key(n, k), bucket(m)))


def table_file() -> Path:
    """Return the file of the user's own choices: ``tuning.json`` in ``$SSMQUANT_CACHE`` or the user's cache folder."""
    named = os.environ.get("SSMQUANT_CACHE")
    cache_home = os.environ.get("XDG_CACHE_HOME")
    folder = (
        Path(named) if named else (Path(cache_home) if cache_home else Path.home() / ".cache") / "ssmquant"
    )
    return folder / "tuning.json"


def record(device: str, op: str, *, n: int, k: int, tiles: Mapping[int, Tile]) -> Path:
    """Add measured tiles to the user's table and return its file; they hold from now on.

    Args:
        device: name of the device.
        op: name of the op.
        n: rows of the weight.
        k: columns of the weight.
        tiles: tile by bucket of M.
    """
    path = table_file()
    table = _read(path)
    shapes = table.setdefault(device, {}).setdefault(op, {})
    shapes.setdefault(key(n, k), {}).update({str(m): asdict(tile) for m, tile in tiles.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}")
    written.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    written.replace(path)
    _choices.cache_clear()
    return path


@cache
def _choices(device: str, op: str) -> dict[tuple[str, int], Tile]:
    packaged = json.loads((files("ssmquant.ops") / "tuning.json").read_text(encoding="utf-8"))
    return {
        (shape, int(m)): Tile(**tile)
        for table in (packaged, _read(table_file()))
        for shape, tiles in table.get(device, {}).get(op, {}).items()
        for m, tile in tiles.items()
    }


def _read(path: Path) -> Table:
    """Return the table in a file; an empty one if there is no such file or it is damaged."""
    try:
        table: Table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        _LOG.warning("tuning: %s is not readable and is left aside (%s)", path, error)
        return {}
    return table
