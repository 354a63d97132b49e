"""Write docs/speed.md from the measured files benchmarks/results/cpu-*.json.

python benchmarks/render_speed.py            # write
python benchmarks/render_speed.py --check    # exit with 1 if it would change
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pages import ROOT, keep, measured, table

Result = Mapping[str, Any]


def spread(values: Mapping[str, float]) -> str:
    """Return a median with its percentiles."""
    return f"{number(values['p50'])} [{number(values['p20'])}, {number(values['p80'])}]"


def number(value: float) -> str:
    """Return three digits, or the whole number where there are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def share(value: float | None) -> str:
    """Return a share in percent; empty where it is not known."""
    return "" if value is None else f"{100 * value:.0f} %"


def megabytes(count: float | None) -> str:
    """Return bytes in MB."""
    return "" if count is None else f"{count / 1e6:,.0f}"


def label(row: Mapping[str, Any]) -> str:
    """Return what a row is of."""
    return f"{row['name']} `{row['recipe']}`"


def ratios(results: Iterable[Result]) -> list[str]:
    """Return the table of speeds relative to peers."""
    rows = []
    for result in results:
        ours, *others = result["rows"]
        for other, ratio in zip(others, result["ratios"], strict=True):
            rows.append(
                (
                    label(ours),
                    label(other),
                    f"{number(ours['decode_tps'])} : {number(other['decode_tps'])}",
                    f"**{spread(ratio['decode'])}**",
                    f"{number(ours['prefill_tps'])} : {number(other['prefill_tps'])}",
                    f"**{spread(ratio['prefill'])}**",
                )
            )
    return table(
        ("ours", "peer", "decode, tokens/s", "times as fast", "prefill, tokens/s", "times as fast"), rows
    )


def limits(results: Iterable[Result]) -> list[str]:
    """Return the table of shares of the machine's limits."""
    header = ("model", "decode, tokens/s", "read bandwidth beside it, GB/s", "share", "prefill, tokens/s")
    rows = [
        (
            label(row),
            spread(row["decode_tps_spread"]),
            number(result["probe"]["read_gbps"]),
            share(row["bandwidth_share"]),
            spread(row["prefill_tps_spread"]),
            "" if result["probe"]["int8_gops"] is None else number(result["probe"]["int8_gops"]),
            share(row["compute_share"]),
        )
        for result in results
        for row in result["rows"][:1]
    ]
    return table((*header, "int8 peak beside it, Gop/s", "share"), rows)


def memory(results: Iterable[Result]) -> list[str]:
    """Return the table of memory."""
    rows = [
        (
            label(row),
            megabytes(row["weight_bytes"]),
            megabytes(row["state_bytes"]),
            megabytes(row["base_bytes"]),
            megabytes(row["peak_bytes"]),
            megabytes(allowed_bytes(row)),
            "" if row["load_seconds"] is None else f"{row['load_seconds']:.1f}",
        )
        for result in results
        for row in result["rows"]
    ]
    header = (
        "", "weights MB", "state MB", "Python and PyTorch MB", "peak MB, all of it", "aim MB", "until ready, s",
    )  # fmt: skip
    return table(header, rows)


def allowed_bytes(row: Mapping[str, Any]) -> float | None:
    """Return what one of our models should take at most: its weights and state, a tenth more, and 200 MB."""
    return None if row["state_bytes"] is None else 1.1 * (row["weight_bytes"] + row["state_bytes"]) + 200e6


def disturbance(results: Iterable[Result]) -> list[str]:
    """Return the table of what is left beside a busy process."""
    rows = [
        (label(row), spread(row["decode_tps_alone"]), spread(row["decode_kept"]), spread(row["prefill_kept"]))
        for result in results
        for row in result["busy"]
    ]
    return table(("", "decode alone, tokens/s", "share kept, decode", "share kept, prefill"), rows)


def evaluations(results: Iterable[Result]) -> list[str]:
    """Return the table of evaluations from start to end."""
    rows = [
        (label(row), f"`{row['command']}`", f"{row['tokens']:,}", spread(row["seconds"]))
        for result in results
        for row in (result["evaluation"],)
    ]
    return table(("", "command", "tokens", "seconds, from start to end"), rows)


def growth(result: Result) -> list[str]:
    """Return the table of cost by length of the prompt."""
    rows = [
        (
            f"{row['prompt_len']:,}",
            spread(row["ttft_ms"]),
            f"{1e3 * row['ttft_ms']['p50'] / row['prompt_len']:.3g}",
            spread(row["tpot_ms"]),
            megabytes(row["state_bytes"]),
            megabytes(row["peak_bytes"]),
        )
        for row in result["rows"]
    ]
    return table(("prompt", "TTFT ms", "µs a token", "TPOT ms after it", "state MB", "peak MB"), rows)


def document(results: Mapping[str, Result]) -> str:
    """Return docs/speed.md.

    Args:
        results: contents of the files by case.
    """
    peers = [result for name, result in results.items() if "ratios" in result and "growth" not in name]
    grown = {name: result for name, result in results.items() if name.startswith("growth-")}
    evaluated = [result for result in results.values() if "evaluation" in result]
    disturbed = [result for result in results.values() if "busy" in result]
    machines = sorted({machine(result["environment"]) for result in results.values()})
    lines = [
        "# Speed on the CPU",
        "",
        "Written by `python benchmarks/render_speed.py` from `benchmarks/results/cpu-*.json`, which",
        "`benchmarks/cpu.py` measures. Random weights in published shapes, one sequence, a prompt of 512 tokens and",
        "128 steps after it; median [20 %, 80 %] of the repetitions. Contestants run in turns, each in a process of",
        "its own, with the same threads; a ratio is of two neighbours in time. llama.cpp's figures are llama-bench's.",
        "",
        *(f"Measured on {words}." for words in machines),
        "The machine is a virtual one whose memory and cores are shared: a wide spread says that something else ran.",
        "",
        "## Beside other programs",
        "",
        *ratios(peers),
        "",
        "## Beside the limits of the machine",
        "",
        "The bandwidth is that of reading a buffer as large as what a step reads, the peak that of int8 products in",
        "registers; both with the same threads, beside each repetition.",
        "",
        *limits(peers),
        "",
        "## Memory",
        "",
        "The aim is 1.1 times weights and state, and 200 MB. Python and PyTorch alone take 230 MB, so small models",
        "cannot reach it ([engine.md](engine.md#memory)).",
        "",
        *memory(peers),
    ]
    if disturbed:
        lines += ["", "## With another process busy on one core", "", *disturbance(disturbed)]
    if evaluated:
        lines += ["", "## Reading a text whole", "", *evaluations(evaluated)]
    for name, result in grown.items():
        lines += ["", f"## As the prompt grows: {name.removeprefix('growth-')}", "", *growth(result)]
    return "\n".join(lines) + "\n"


def machine(environment: Mapping[str, Any]) -> str:
    """Return where something was measured."""
    isa = f" ({environment['isa']})" if environment.get("isa") else ""
    when = f"torch {environment['torch']}, {environment['date'][:10]}"
    return f"{environment['cpu']}{isa}, {environment['threads']} threads, {when}"


def pages() -> dict[Path, str]:
    """Return the page."""
    results = {name.removeprefix("cpu-"): result for name, result in measured("cpu-*").items()}
    return {ROOT / "docs" / "speed.md": document(results)}


if __name__ == "__main__":
    keep(pages)
