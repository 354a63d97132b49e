"""`ssmquant inspect`: what a model folder holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from ssmquant.cli.console import printable, size, stdout
from ssmquant.cli.files import require_place, write_json
from ssmquant.cli.options import JsonFile, QuantisedFolder

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["inspect"]


def inspect(model: QuantisedFolder, json: JsonFile = None) -> None:
    """Show what a model folder holds: tensors by type, the scheme of each site, the state, where it came from."""
    require_place(json)
    import ssmquant
    from ssmquant.files import read_tensors, resolve

    stored = _by_dtype(read_tensors(resolve(model)))
    loaded = ssmquant.load(model)
    engine = loaded.engine()
    _, state = engine.prefill([[0]])
    console = stdout()
    console.print(_tensor_table(stored))
    if loaded.plan is not None:
        console.print(loaded.plan.table())
    console.print(f"family: {loaded.family}")
    why = f" ({engine.reason})" if engine.reason else ""
    console.print(printable(f"engine: {type(engine).__name__}{why}"), markup=False, soft_wrap=True)
    console.print(f"recurrent state: {size(state.nbytes)} a sequence, whatever its length")
    for key, value in _flat(loaded.provenance).items():
        console.print(printable(f"{key}: {value}"), markup=False, soft_wrap=True)
    found = {
        "model": model,
        "family": loaded.family,
        "tensors": stored,
        "engine": type(engine).__name__,
        "engine_reason": engine.reason,
        "state_bytes": state.nbytes,
        "plan": None if loaded.plan is None else loaded.plan.to_json(),
        "provenance": loaded.provenance,
    }
    write_json(json, found)


def _by_dtype(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, int]]:
    """Return {dtype: {"tensors", "elements", "bytes"}}, most bytes first."""
    found: dict[str, dict[str, int]] = {}
    for tensor in tensors.values():
        entry = found.setdefault(
            str(tensor.dtype).removeprefix("torch."), dict.fromkeys(("tensors", "elements", "bytes"), 0)
        )
        entry["tensors"] += 1
        entry["elements"] += tensor.numel()
        entry["bytes"] += tensor.nbytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def _tensor_table(stored: Mapping[str, Mapping[str, int]]) -> Table:
    table = Table("type", box=box.SIMPLE_HEAD, title="stored tensors", show_footer=True)
    table.columns[0].footer = "all"
    for measure in ("tensors", "elements", "bytes"):
        table.add_column(measure, f"{sum(row[measure] for row in stored.values()):,}", justify="right")
    for dtype, row in stored.items():
        table.add_row(dtype, *(f"{value:,}" for value in row.values()))
    return table


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
