"""Plots of a comparison as SVG text that can stand inside a page; the same comparison gives the same bytes."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from ssmquant.eval.statistics import CONFIDENCE
from ssmquant.report.comparison import Comparison
from ssmquant.report.row import Row

__all__ = ["Plot", "plots"]

_SIZE = (7.2, 4.2)  # inches, at 72 points
# Nats a token. Smaller ones are rounding errors; drawn where they are they would stretch the axis, and 0 has no place.
_LEAST_KL = 1e-6
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "ssmquant",
    "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
    "text.parse_math": False,  # a $ in a file name is a $
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
}


class Plot(NamedTuple):
    """A plot and what it shows."""

    title: str
    svg: str
    note: str


def plots(comparison: Comparison) -> tuple[Plot, ...]:
    """Return quality against bytes and against the time of a prefill."""
    rows = comparison.ranked
    note = (
        "Lower left is better; the line joins the recipes that no other one beats in both. Whiskers: intervals of "
        f"{CONFIDENCE:.0%}. Below {_LEAST_KL:.0e} nats a recipe is drawn there."
    )
    return (
        Plot(
            "quality and size",
            _scatter("size", rows, lambda row: row.bytes_at_rest / 1e6, "stored tensors, MB"),
            note,
        ),
        Plot(
            "quality and time of a prefill",
            _scatter(
                "prefill",
                rows,
                lambda row: row.prefill.p50,
                "prefill time relative to float",
            ),
            f"{note} Recipes that no engine runs here are timed stage by stage.",
        ),
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other one beats or equals in both (less is better), by the first."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def _scatter(name: str, rows: Sequence[Row], x_of: Callable[[Row], float], x_label: str) -> str:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        points = [(x_of(row), max(row.kl.value, _LEAST_KL)) for row in rows]
        front = [points[i] for i in pareto(points)]
        axes.plot(*zip(*front, strict=True), color="0.6", linewidth=1, zorder=1, drawstyle="steps-post")
        colors = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
        for rank, (row, (x, y)) in enumerate(zip(rows, points, strict=True), start=1):
            low, high = (max(bound, _LEAST_KL) for bound in row.kl.bounds() or (y, y))
            color = colors[(rank - 1) % len(colors)]
            axes.plot([x, x], [low, high], color=color, linewidth=1, zorder=2)
            axes.plot([x], [y], "o", color=color, label=f"{rank}  {row.recipe}", zorder=3)
            axes.annotate(str(rank), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=9)
        axes.set_yscale("log")
        for ticks in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            ticks(LogFormatter())  # the default one writes mathematics, which is off here
        axes.set_xlabel(x_label)
        axes.set_ylabel("KL from the float model, nats a token")
        axes.grid(visible=True, color="0.92")
        axes.set_axisbelow(True)
        figure.legend(loc="outside lower left", fontsize=8, frameon=False, ncols=2)
        return _inline(figure, name)


def _inline(figure: Figure, name: str) -> str:
    """Return the figure as an svg element for a page: its ids are its own, and it names nothing outside."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # A letter that matplotlib's font lacks is measured wrongly, but drawn by the reader's font.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for before in ('id="', 'href="#', "url(#"):
        svg = svg.replace(before, f"{before}{name}-")
    return svg
