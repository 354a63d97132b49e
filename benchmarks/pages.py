"""Pages that are generated from measured files: written, or checked to be up to date."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["RESULTS", "ROOT", "keep", "measured", "stale", "table"]

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def measured(pattern: str = "*") -> dict[str, dict[str, Any]]:
    """Return the content of the measured files whose name, without ending, fits a pattern, by that name."""
    paths = sorted(RESULTS.glob(f"{pattern}.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Return the lines of a Markdown table."""
    titles = list(header)
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def stale(pages: Mapping[Path, str]) -> list[Path]:
    """Return the files that do not have the text that they should have."""
    return [
        path for path, text in pages.items() if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def keep(pages: Callable[[], Mapping[Path, str]]) -> None:
    """Run the command line of a script that writes pages: without options it writes those that are not up to date.

    Args:
        pages: returns the text that each file should have.
    """

    def main(
        check: Annotated[
            bool, typer.Option("--check", help="Write nothing; fail if a page is not up to date.")
        ] = False,
    ) -> None:
        """Write the pages of this script from the measured files."""
        texts = pages()
        found = stale(texts)
        if check and found:
            typer.echo(
                f"not up to date: {', '.join(str(path.relative_to(ROOT)) for path in found)}", err=True
            )
            raise typer.Exit(1)
        for path in found:
            path.write_text(texts[path], encoding="utf-8")

    typer.run(main)
