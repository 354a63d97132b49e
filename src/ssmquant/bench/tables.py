"""A measurement as tables for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from ssmquant.bench.contestant import Facts
from ssmquant.bench.results import Measurement, Percentiles

__all__ = ["tables"]


def tables(measurement: Measurement) -> list[Table]:
    """Return the tables for people: speed, memory and limits, ratios where there are peers."""
    shown = [_speed(measurement), _memory(measurement)]
    return [*shown, _ratios(measurement)] if len(measurement.rows) > 1 else shown


def _speed(measurement: Measurement) -> Table:
    workload, row = measurement.rows[0].workload, measurement.rows[0]
    table = _table(
        f"prompt {workload.prompt_len}, {workload.gen_len} steps, batch {workload.batch}, {row.threads} threads, "
        f"{row.device}; median [20 %, 80 %] of {len(row.times)}",
        ("model", "recipe", "engine"),
        ("TTFT ms", "TPOT ms", "TTLT ms", "prefill tokens/s", "decode tokens/s"),
    )
    for row in measurement.rows:
        spreads = (row.ttft_ms, row.tpot_ms, row.ttlt_ms, row.prefill_tps, row.decode_tps)
        table.add_row(*_names(row.facts), *map(_spread, spreads))
    reasons = [
        f"{r.facts.name} {r.facts.recipe}: {r.facts.engine_reason}"
        for r in measurement.rows
        if r.facts.engine_reason
    ]
    table.caption = Text("\n".join(reasons))
    return table


def _memory(measurement: Measurement) -> Table:
    probe = measurement.probe
    peak = "" if probe["int8_gops"] is None else f", {probe['int8_gops']:,.0f} int8 Gop/s"
    table = _table(
        f"limits beside it ({probe['how']}{'' if probe['isa'] is None else ', ' + probe['isa']}): "
        f"{probe['read_gbps']:.1f} GB/s read{peak}",
        ("model", "recipe", "engine"),
        ("weights MB", "state MB", "peak MB", "load s", "of the bandwidth", "of the int8 peak"),
    )
    for row in measurement.rows:
        sizes = (row.facts.weight_bytes, row.facts.state_bytes, row.peak_bytes)
        table.add_row(
            *_names(row.facts),
            *("" if size is None else f"{size / 1e6:,.1f}" for size in sizes),
            "" if row.facts.load_seconds is None else f"{row.facts.load_seconds:.1f}",
            *("" if share is None else f"{share:.0%}" for share in (row.bandwidth_share, row.compute_share)),
        )
    return table


def _ratios(measurement: Measurement) -> Table:
    first = measurement.rows[0].facts
    table = _table(
        f"{first.name} {first.recipe}: times as fast as", ("model", "recipe"), ("prefill", "decode")
    )
    for ratio in measurement.ratios:
        table.add_row(*_names(ratio.other)[:2], _spread(ratio.prefill), _spread(ratio.decode))
    return table


def _table(title: str, words: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(*words, box=box.SIMPLE_HEAD, title=Text(title))
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _names(facts: Facts) -> tuple[Text, Text, Text]:
    return Text(facts.name), Text(facts.recipe), Text(facts.engine)


def _spread(values: Percentiles) -> str:
    p20, p50, p80 = (f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in values)
    return f"{p50} [{p20}, {p80}]"
