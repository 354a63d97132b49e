"""The folder of a report: index.html (one file, nothing fetched), report.md, compare.json, and the finished rows.

require_report_folder(Path("report"))             # before the work
write_report(Path("report"), comparison)
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path

from ssmquant.errors import InputError
from ssmquant.report.comparison import Comparison
from ssmquant.report.store import RowStore
from ssmquant.report.tables import domain_table, mean_table, paired_table, summary_table
from ssmquant.report.writing import write_text

__all__ = ["require_report_folder", "row_store", "write_report"]

_ROWS = "rows"
_JSON = "compare.json"


def require_report_folder(path: Path) -> None:
    """Refuse, before any work, a folder that a report could not or should not be written to.

    Args:
        path: the folder asked for.

    Raises:
        InputError: a library of the extra is missing, the path is a file, cannot be written, or holds other things.
    """
    for library in ("jinja2", "matplotlib"):
        try:
            importlib.import_module(library)
        except ModuleNotFoundError as error:
            raise InputError(
                f"a report was asked for, which needs {error.name!r}, and that is not installed; "
                "run: pip install 'ssmquant[report]', or leave out -o"
            ) from error
    nearest = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise InputError(
            f"asked to write a report folder at {path}, found a file at {nearest}; choose another name"
        )
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(
            f"asked to write a report at {path}: no permission in {nearest}; choose another folder"
        )
    if path.is_dir() and any(path.iterdir()) and not ((path / _JSON).is_file() or (path / _ROWS).is_dir()):
        raise InputError(
            f"asked to write a report in {path}, found a folder with other things in it; choose an empty or new "
            "folder, or one that an earlier compare wrote"
        )


def row_store(path: Path) -> RowStore:
    """Return the store of finished rows of a report folder."""
    return RowStore(path / _ROWS)


def write_report(path: Path, comparison: Comparison) -> None:
    """Write the page, the Markdown file and the JSON file; each appears whole.

    Args:
        path: the folder; made where missing.
        comparison: what to report.
    """
    # Of the extra `report`, so not imported by who wants the table alone.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    from ssmquant.report.plots import plots

    templates = Environment(
        loader=PackageLoader("ssmquant.report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters["cell"] = _markdown_cell
    content = {
        "comparison": comparison,
        "summary": summary_table(comparison),
        "details": [table(comparison) for table in (domain_table, mean_table, paired_table)],
        "plots": plots(comparison),
    }
    write_text(path / "index.html", templates.get_template("index.html.j2").render(content))
    write_text(path / "report.md", templates.get_template("report.md.j2").render(content))
    write_text(path / _JSON, json.dumps(comparison.to_json(), indent=2, ensure_ascii=False) + "\n")


def _markdown_cell(text: str) -> str:
    """Return text that stays in its cell of a Markdown table and means what it says."""
    escaped = text.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("_", "\\_")
    return escaped.replace("<", "&lt;").replace("\n", " ")
