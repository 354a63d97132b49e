"""A comparison as tables of plain text, the same for the terminal, the page and the Markdown file."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ssmquant.eval.statistics import CONFIDENCE, NO_DIFFERENCE, Interval, verdict
from ssmquant.report.comparison import Comparison
from ssmquant.report.row import Row
from ssmquant.report.timing import Relative, Workload

__all__ = ["Column", "Table", "domain_table", "mean_table", "paired_table", "summary_table"]


class Column(NamedTuple):
    """Heading of a column, and what it means."""

    name: str
    meaning: str
    numeric: bool = True


class Table(NamedTuple):
    """A table for people."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


_RECIPE = Column("recipe", "reference of the recipe", numeric=False)
_KL = "KL(float ‖ quantised) of the next-token distributions, nats a token"
_INTERVAL = f"{CONFIDENCE:.0%} bootstrap interval over documents"
_SUMMARY: tuple[tuple[Column, Callable[[Row], str]], ...] = (
    (Column("KL", f"{_KL}, mean over domains, with its {_INTERVAL}"), lambda row: _interval(row.kl, ".2e", ".1e")),
    (
        Column("weight bits", "bits of the stored weights, scales included, over their number"),
        lambda row: f"{row.bits_weight:.2f}",
    ),
    (
        Column("act. bits", "bits of what linear layers read; 16 and 32 are floats"),
        lambda row: str(row.bits_activation),
    ),
    (Column("MB", "all stored tensors, 10⁶ bytes"), lambda row: f"{row.bytes_at_rest / 1e6:.2f}"),
    (
        Column("state kB", "recurrent state of one sequence right after its rounding, 10³ bytes"),
        lambda row: f"{row.state_bytes / 1e3:.1f}",
    ),
    (
        Column("float", "share of the linear layers' multiplications that is done on floats"),
        lambda row: f"{row.float_share:.0%}",
    ),
    (
        Column("calib. s", "seconds to gather statistics (shared ones count for each), transform and choose codes"),
        lambda row: f"{row.calibration_s:.1f}",
    ),
    (
        Column("peak MB", "resident memory of loading and running it, less Python's and PyTorch's own"),
        lambda row: f"{row.peak_bytes / 1e6:.0f}",
    ),
    (
        Column("prefill ×", "time over the float model's, median [p20, p80]; *: no engine runs it here"),
        lambda row: _relative(row.prefill, row.by_stages),
    ),
    (
        Column("decode ×", "the same of decoding"),
        lambda row: _relative(row.decode, row.by_stages),
    ),
)  # fmt: skip
_GROUP = Column(
    "group", "recipes share a letter if and only if no difference of them is shown", numeric=False
)
_DOMAIN = Column("domain", "kind of text", numeric=False)
_PAIR = (Column("a", "the first recipe", numeric=False), Column("b", "the second recipe", numeric=False))
_DIFFERENCE = Column(
    "KL of a − b", f"nats a token, with its {_INTERVAL}; negative where a is closer to the float model"
)


def summary_table(comparison: Comparison) -> Table:
    """Return a row a recipe: quality, cost, and the letters of what cannot be told apart."""
    return Table(
        f"recipes on {comparison.model}",
        (_RECIPE, _GROUP, *(column for column, _ in _SUMMARY)),
        tuple(
            (row.recipe, comparison.letters[row.recipe], *(cell(row) for _, cell in _SUMMARY))
            for row in comparison.ranked
        ),
        f"Closest to the float model first. {_speed_note(comparison.workload)}",
    )


def domain_table(comparison: Comparison) -> Table:
    """Return a row a recipe and domain: divergence, agreement and perplexity with intervals."""
    columns = (
        Column("tokens", "predicted tokens"),
        Column("KL", f"{_KL}, with its {_INTERVAL}"),
        Column("top-1 agreement", "positions at which both models have the same most likely token"),
        Column("perplexity", "of the quantised model"),
        Column("perplexity ratio", "over that of the float model, same tokens, paired interval"),
    )
    rows = tuple(
        (
            row.recipe,
            domain,
            f"{scores.tokens:,}",
            _interval(scores.kl, ".2e"),
            _interval(scores.top1, ".2%"),
            f"{scores.ppl.value:.2f}",
            _interval(scores.ppl_ratio, ".4f"),
        )
        for row in comparison.ranked
        for domain, scores in row.scores.domains.items()
    )
    return Table("by domain", (_RECIPE, _DOMAIN, *columns), rows, f"Intervals: {_INTERVAL}.")


def mean_table(comparison: Comparison) -> Table:
    """Return a row a pair of recipes: the test on the mean over domains that the letters are made from."""
    columns = (
        *_PAIR,
        _DIFFERENCE,
        Column("p", "two-sided sign-flip test over documents"),
        Column("p (Holm)", "the same, corrected for the number of pairs"),
        Column("result", "what the test and the interval support", numeric=False),
    )
    rows = tuple(
        (
            pair.a,
            pair.b,
            _interval(pair.test.diff, "+.2e"),
            f"{pair.test.p:.4f}",
            f"{pair.p_holm:.4f}",
            verdict(pair.test, pair.a, pair.b, lower="closer") if pair.differ else NO_DIFFERENCE,
        )
        for pair in comparison.pairs
    )
    return Table(
        "differences, mean over domains",
        columns,
        rows,
        f"A difference is shown where the interval excludes 0 and p (Holm) is at most {1 - CONFIDENCE:.2f}. The test "
        "takes the documents of all domains for one sample in which every domain weighs the same.",
    )


def paired_table(comparison: Comparison) -> Table:
    """Return a row a pair of recipes and domain."""
    columns = (
        *_PAIR,
        _DOMAIN,
        _DIFFERENCE,
        Column("p", "two-sided sign-flip test over documents, not corrected for the number of tests"),
        Column("result", "what the test and the interval support", numeric=False),
    )
    rows = tuple(
        (
            pair.a,
            pair.b,
            pair.domain,
            _interval(pair.kl.diff, "+.2e"),
            f"{pair.kl.p:.4f}",
            verdict(pair.kl, pair.a, pair.b, lower="closer"),
        )
        for pair in comparison.paired
    )
    return Table(
        "differences by domain", columns, rows, f"{len(rows)} tests, p not corrected for their number."
    )


def _speed_note(workload: Workload) -> str:
    return (
        "prefill × and decode × are of the engine that runs a recipe here, in turns with the float model in the engine "
        f"that runs that (prefill of {workload.prompt} tokens, {workload.steps} steps, {workload.repetitions} "
        "repetitions, one sequence); where a * stands, none does: the recipe runs stage by stage, which says nothing "
        "of what kernels for it could do."
    )


def _interval(interval: Interval | None, spec: str, bounds_spec: str | None = None) -> str:
    if interval is None:
        return ""
    bounds = interval.bounds()
    each = bounds_spec or spec
    found = "one document" if bounds is None else f"{bounds[0]:{each}}, {bounds[1]:{each}}"
    return f"{interval.value:{spec}} [{found}]"


def _relative(relative: Relative, by_stages: str) -> str:
    return f"{relative.p50:.2f} [{relative.p20:.2f}, {relative.p80:.2f}]{'*' if by_stages else ''}"
