"""Tables of an evaluation for people: values with their intervals, differences only where they are shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from ssmquant.eval.statistics import CONFIDENCE, Interval, verdict

if TYPE_CHECKING:
    from ssmquant.eval.results import DomainScores, Evaluation

__all__ = ["paired_table", "scores_table"]


class _Column(NamedTuple):
    header: str
    cell: Callable[[DomainScores], str]


_ALONE = (
    _Column("tokens", lambda scores: f"{scores.tokens:,}"),
    _Column("perplexity", lambda scores: _interval(scores.ppl, ".2f")),
)
_COMPARED = (
    _Column("tokens", lambda scores: f"{scores.tokens:,}"),
    _Column("KL [nats]", lambda scores: _interval(scores.kl, ".2e")),
    _Column("top-1 agreement", lambda scores: _interval(scores.top1, ".2%")),
    _Column("perplexity", lambda scores: f"{scores.ppl.value:.2f}"),
    _Column("perplexity ratio", lambda scores: _interval(scores.ppl_ratio, ".4f")),
)


def scores_table(evaluation: Evaluation) -> Table:
    """Return a row a model and domain, with 95 % intervals over documents."""
    columns = _ALONE if evaluation.against is None else _COMPARED
    table = Table(box=box.SIMPLE_HEAD, caption=f"{CONFIDENCE:.0%} intervals over documents (bootstrap)")
    if evaluation.against is not None:
        table.title = Text(f"against {evaluation.against}")
    table.add_column("model", overflow="fold")
    table.add_column("domain")
    for column in columns:
        table.add_column(Text(column.header), justify="right")
    for model in evaluation.models:
        for domain, scores in model.domains.items():
            table.add_row(Text(model.name), Text(domain), *(Text(column.cell(scores)) for column in columns))
    return table


def paired_table(evaluation: Evaluation) -> Table:
    """Return a row a pair of candidates and domain: the difference of their KL and what it supports."""
    pairs = evaluation.paired
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text("paired differences of KL [nats]"),
        caption=f"{CONFIDENCE:.0%} intervals over documents; p of the two-sided sign-flip test, not "
        f"corrected for the number of comparisons ({len(pairs)})",
    )
    for header in ("a", "b"):
        table.add_column(header, overflow="fold")
    table.add_column("domain")
    for header in ("a - b", "p"):
        table.add_column(header, justify="right")
    table.add_column("result")
    for pair in pairs:
        cells = (
            pair.a,
            pair.b,
            pair.domain,
            _interval(pair.kl.diff, "+.2e"),
            f"{pair.kl.p:.4f}",
            verdict(pair.kl, pair.a, pair.b, lower="closer"),
        )
        table.add_row(*map(Text, cells))
    return table


def _interval(interval: Interval | None, spec: str) -> str:
    if interval is None:
        return ""
    bounds = interval.bounds()
    if bounds is None:
        return f"{interval.value:{spec}} [one document]"
    return f"{interval.value:{spec}} [{bounds[0]:{spec}}, {bounds[1]:{spec}}]"
