"""Write docs/claims.md: what the field claims, what the measured files under benchmarks/results say, and a verdict.

    python benchmarks/claims.py            # write
    python benchmarks/claims.py --check    # exit with 1 if it would change

A claim reads the files that exist and says so where one does not: `compare-MODEL.json` (compare.py),
`outliers-MODEL.json` (outliers.py), `cpu-*.json` and `gpu-*.json` (speed).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from statistics import mean, median
from typing import Any

from pages import ROOT, keep, measured

Files = Mapping[str, Mapping[str, Any]]
"""Content of the measured files, by name without ending."""

# Systems that keep a part of the work in floating point, with the cost of latency that is claimed, in percent.
MIXED_LATENCY = {"llm-int8": (10, 15), "squeezellm": (5, 20), "awq": (8, 12), "atom-w4a8": (10, 20)}
STATIC = ("quamba-w8a8", "quamba2-w8a8", "ssmquant-w8a8")
TRANSFORMER = "llama"
# Sites that linear layers read, each once: of q, k and v, and of gate and up, the inputs are the same.
LINEAR_INPUTS = {
    "hidden",
    "y",
    "input",
    "x",
    "dt_in",
    "q_proj",
    "o_proj",
    "gate_proj",
    "down_proj",
    "lm_head",
}


class Verdict(StrEnum):
    """What a measurement says of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    BETTER = "does not hold: it is better"
    OPEN = "not measured yet"
    UNTESTABLE = "not testable here"

    @classmethod
    def of(cls, holds: bool) -> Verdict:
        """Return whether it holds."""
        return cls.HOLDS if holds else cls.FAILS


@dataclass(frozen=True)
class Finding:
    """One measurement about a claim."""

    model: str
    machine: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True)
class Claim:
    """Something that is said about quantised Mamba models.

    Attributes:
        text: the claim.
        find: measurements of it in the files.
        missing: what would measure it, for the case that no file does.
    """

    text: str
    find: Callable[[Files], Iterator[Finding]]
    missing: str


def machine(environment: Mapping[str, Any]) -> str:
    """Return where something was measured."""
    return str(environment.get("gpu") or environment["cpu"])


@dataclass(frozen=True)
class Scored:
    """A recipe on a model: quality by domain, and bytes of its weights."""

    model: str
    machine: str
    domains: Mapping[str, Mapping[str, Any]]
    bytes: int

    @property
    def kl(self) -> float:
        """Mean over domains."""
        return mean(entry["kl"] for entry in self.domains.values())

    @property
    def recovery(self) -> float:
        """Perplexity of the float model over that of the quantised one, mean over domains."""
        return mean(1 / entry["ppl_ratio"] for entry in self.domains.values())


def scored(files: Files) -> dict[str, dict[str, Scored]]:
    """Return the measured recipes, by model and reference."""
    return {
        (model := name.removeprefix("compare-")): {
            row["recipe"]: Scored(model, machine(content["environment"]), row["domains"], row["bytes"])
            for row in content["rows"]
        }
        for name, content in files.items()
        if name.startswith("compare-")
    }


def latencies(files: Files) -> Iterator[tuple[str, str, dict[str, float]]]:
    """Yield (model, machine, median milliseconds a token by recipe) of rows that differ in nothing but the recipe."""
    for name, content in sorted(files.items()):
        if not name.startswith(("cpu-", "gpu-")):
            continue
        groups: dict[tuple[Any, ...], dict[str, float]] = {}
        for row in content.get("rows", ()):
            key = tuple(row.get(part) for part in ("name", "device", "threads", "batch", "prompt_len"))
            if row.get("tpot_ms"):
                groups.setdefault(key, {})[row["recipe"]] = row["tpot_ms"]["p50"]
        for key, times in groups.items():
            yield str(key[0]), machine(content["environment"]), times


def better(candidate: str, base: str, want: str) -> Callable[[Files], Iterator[Finding]]:
    """Return the findings on whether one recipe's KL is below another's in every domain by more than the intervals."""

    def find(files: Files) -> Iterator[Finding]:
        for model, recipes in sorted(scored(files).items()):
            if candidate in recipes and base in recipes:
                one, other = recipes[candidate], recipes[base]
                apart = all(one.domains[d]["kl_ci"][1] < other.domains[d]["kl_ci"][0] for d in one.domains)
                measured = f"KL `{candidate}` {one.kl:.4f}, `{base}` {other.kl:.4f} ({want})"
                yield Finding(model, one.machine, measured, Verdict.of(one.kl < other.kl and apart))

    return find


def slower(candidate: str, base: str, low: float, high: float) -> Callable[[Files], Iterator[Finding]]:
    """Return the findings on whether a recipe takes between low and high percent more time a token than another."""

    def find(files: Files) -> Iterator[Finding]:
        for model, place, times in latencies(files):
            if candidate in times and base in times:
                more = 100 * (times[candidate] / times[base] - 1)
                measured = f"`{candidate}` {more:+.1f} % a token against `{base}`"
                verdict = Verdict.BETTER if more < low else Verdict.of(more <= high)
                yield Finding(model, place, measured, verdict)

    return find


def static_is_free(files: Files) -> Iterator[Finding]:
    """Static int8 costs under 1 % of latency against fp16."""
    for recipe in STATIC:
        yield from slower(recipe, "fp16", -100, 1)(files)
    for content in gpu_tables(files):
        ours = {row["model"]: row["decode"] for row in content["models"] if row["weights"] == 8}
        for peer in content["fp16"]:
            for rows, milliseconds in peer["decode"].items():
                step = ours[peer["model"]][rows]["tpot_ms"]
                more = 100 * (step / milliseconds - 1)
                measured = (
                    f"W8A8 {step:.2f} ms a token, float16 {milliseconds:.2f}, {rows} rows: {more:+.0f} %"
                )
                verdict = Verdict.BETTER if more < -1 else Verdict.of(more <= 1)
                yield Finding(peer["model"], machine(content["environment"]), measured, verdict)


def piecewise_is_free(files: Files) -> Iterator[Finding]:
    """Piecewise scales cost under 1 % of latency against one a tensor."""
    yield from slower("quamba2-w8a8", "quamba-w8a8", -100, 1)(files)
    for content in gpu_tables(files):
        found = content["one_scale"]
        more = [100 * (found[f"{time}_ms"] / found[f"changed_{time}_ms"] - 1) for time in ("tpot", "ttft")]
        measured = f"{more[0]:+.1f} % a token ({found['rows']} rows), {more[1]:+.1f} % a prompt"
        yield Finding("mamba2-2.7b", machine(content["environment"]), measured, Verdict.of(max(more) < 1))


def decomposition(files: Files) -> Iterator[Finding]:
    """LLM.int8()'s outlier columns, found as it runs, cost 10-15 % of latency."""
    yield from slower("llm-int8", "fp16", *MIXED_LATENCY["llm-int8"])(files)
    for content in gpu_tables(files):
        found = content["decomposition"]
        times = [found[f"changed_{time}_ms"] / found[f"{time}_ms"] for time in ("tpot", "ttft")]
        measured = (
            f"{times[0]:.1f} times a token, {times[1]:.1f} times a prompt of static int8, in the same engine "
            "without kernels of its own"
        )
        yield Finding("mamba2-2.7b", machine(content["environment"]), measured, Verdict.UNTESTABLE)


def gpu_tables(files: Files) -> Iterator[Mapping[str, Any]]:
    """Yield what `gpu.py` measured."""
    yield from (
        content for name, content in sorted(files.items()) if name.startswith("gpu-") and "models" in content
    )


def memory(files: Files) -> Iterator[Finding]:
    """Weights at rest against float16 and float32."""
    for model, recipes in sorted(scored(files).items()):
        if "fp16" not in recipes:
            continue
        half = recipes["fp16"].bytes
        for recipe in ("quamba-w8a8", "quamba2-w8a8", "quamba-w4a8", "quamba2-w4a8"):
            if recipe in recipes:
                times = half / recipes[recipe].bytes
                measured = f"`{recipe}`: float16 / it {times:.2f}, float32 / it {2 * times:.2f}"
                yield Finding(model, recipes[recipe].machine, measured, Verdict.of(times >= 4 * 0.97))


def measured_sites(files: Files) -> Iterator[tuple[str, str, list[Mapping[str, Any]]]]:
    """Yield (model, machine, sites that linear layers read) of each file of outliers."""
    for name, content in sorted(files.items()):
        if name.startswith("outliers-"):
            model = name.removeprefix("outliers-")
            sites = {site["site"]: site for site in content["sites"]}
            # Only Mamba-1 has x_proj, and with it a linear layer that reads x.
            read = LINEAR_INPUTS - ({"x"} if "layers.0.dt_in" not in sites else set())
            chosen = [site for where, site in sites.items() if where.rpartition(".")[2] in read]
            yield model, machine(content["environment"]), chosen


def reach(files: Files) -> Iterator[Finding]:
    """Largest over mean magnitude of what linear layers read: 5-10 for Mamba, 20-50 for a Transformer."""
    for model, place, sites in measured_sites(files):
        ratios = sorted(site["max_over_mean"] for site in sites)
        low, high = (20, 50) if model.startswith(TRANSFORMER) else (5, 10)
        measured = (
            f"median {median(ratios):.0f}, from {ratios[0]:.0f} to {ratios[-1]:.0f} over {len(ratios)} sites"
        )
        yield Finding(model, place, measured, Verdict.of(low <= median(ratios) <= high))


def milder(files: Files) -> Iterator[Finding]:
    """Largest over mean magnitude, Mamba models against each Transformer."""
    middles = {
        model: (place, median(site["max_over_mean"] for site in sites))
        for model, place, sites in measured_sites(files)
    }
    for model, (place, ratio) in middles.items():
        for other, (_, others) in middles.items():
            if other.startswith(TRANSFORMER) and not model.startswith(TRANSFORMER):
                measured = f"largest over mean, median of sites: {ratio:.0f}, of {other} {others:.0f}"
                yield Finding(model, place, measured, Verdict.of(ratio < others))


def tails(files: Files) -> Iterator[Finding]:
    """Share of magnitudes beyond multiples of sigma: 1 % beyond 5 sigma for Mamba, beyond 10 for a Transformer."""
    for model, place, sites in measured_sites(files):
        multiple = "10" if model.startswith(TRANSFORMER) else "5"
        shares = {m: mean(site["beyond"][m] for site in sites) for m in ("5", "10")}
        measured = (
            f"{shares['5']:.3%} beyond 5 σ, {shares['10']:.4%} beyond 10 σ (mean of {len(sites)} sites)"
        )
        yield Finding(model, place, measured, Verdict.of(0.005 <= shares[multiple] <= 0.02))


def steadiness(files: Files) -> Iterator[Finding]:
    """A document's largest magnitude is within 10 % of the median document's, at the sites right after a norm."""
    for model, place, sites in measured_sites(files):
        normed = [
            s
            for s in sites
            if s["site"].endswith(("hidden", "lm_head.input", "q_proj", "gate_proj", "lm_head"))
        ]
        share = mean(site["documents_within_10_percent"] for site in normed)
        measured = f"{share:.0%} of documents within ±10 % of the median (mean of {len(normed)} sites)"
        yield Finding(model, place, measured, Verdict.of(share >= 0.95))


def coverage(files: Files) -> Iterator[Finding]:
    """A range fitted to some documents holds 95-99 % of the magnitudes of others."""
    for model, place, sites in measured_sites(files):
        elements = mean(site["static_range_holds"]["elements"] for site in sites)
        tokens = mean(site["static_range_holds"]["tokens"] for site in sites)
        measured = f"{elements:.4%} of elements, {tokens:.2%} of tokens whole (mean of {len(sites)} sites)"
        yield Finding(model, place, measured, Verdict.of(elements >= 0.95))


def recovery(recipes: tuple[str, ...], low: float, high: float) -> Callable[[Files], Iterator[Finding]]:
    """Return the findings on whether recipes keep a share of the float model's perplexity, in percent."""

    def find(files: Files) -> Iterator[Finding]:
        for model, found in sorted(scored(files).items()):
            for recipe in recipes:
                if recipe in found:
                    share = 100 * found[recipe].recovery
                    verdict = Verdict.BETTER if share > high else Verdict.of(share >= low)
                    yield Finding(model, found[recipe].machine, f"`{recipe}` {share:.2f} %", verdict)

    return find


CLAIMS = (
    Claim(
        "Piecewise scales for x (a head and channel group each) are nearer to float than one a tensor",
        better("quamba2-w8a8+ssm_state=float16", "quamba-w8a8", "both with a float16 state"),
        "`compare.py` with `quamba2-w8a8+ssm_state=float16,quamba-w8a8`",
    ),
    Claim(
        "… at under 1 % of latency",
        piecewise_is_free,
        "`benchmarks/cpu.py` or `gpu.py` with both recipes on one model",
    ),
    Claim(
        "A scale a channel would be a little nearer still",
        better("quamba2-w8a8+scales=channel", "quamba2-w8a8", "only x, x_in and z differ"),
        "`compare.py` with `quamba2-w8a8,quamba2-w8a8+scales=channel`",
    ),
    Claim(
        "… at a higher cost",
        slower("quamba2-w8a8+scales=channel", "quamba2-w8a8", 0.5, 100),
        "`benchmarks/cpu.py` or `gpu.py` with both on one model",
    ),
    *(
        Claim(
            f"`{recipe}`, a mixed-precision system, costs {low}-{high} % of latency against float16",
            decomposition if recipe == "llm-int8" else slower(recipe, "fp16", low, high),
            f"a kernel for `{recipe}`, and `benchmarks/cpu.py` or `gpu.py` with it and `fp16`",
        )
        for recipe, (low, high) in MIXED_LATENCY.items()
    ),
    Claim(
        "Static int8 costs under 1 % of latency against float16",
        static_is_free,
        "`benchmarks/cpu.py` or `gpu.py` with `fp16` and a static recipe",
    ),
    Claim(
        "Quantised weights take a quarter of the memory (of float16; of float32 it would be said of int8)",
        memory,
        "`compare.py` with `fp16` and a quantised recipe",
    ),
    Claim("Mamba's activations have milder outliers than a Transformer's", milder, "`outliers.py`"),
    Claim(
        "The largest activation is 5-10 times the mean in Mamba, 20-50 times in a Transformer",
        reach,
        "`outliers.py`",
    ),
    Claim(
        "1 % of activations are beyond 5 σ in Mamba, beyond 10 σ in a Transformer",
        tails,
        "`outliers.py`",
    ),
    Claim("Norms keep ranges within ±10 % between inputs", steadiness, "`outliers.py`"),
    Claim("Static ranges hold 95-99 % of activations", coverage, "`outliers.py`"),
    Claim(
        "Clipping x at the 0.9995 quantile hurts small models, against no clipping",
        better("quamba-w8a8+clip=100", "quamba-w8a8+clip=99.95", "lower without clipping"),
        "`compare.py` with `quamba-w8a8+clip=100,quamba-w8a8+clip=99.95`",
    ),
    Claim(
        "Mixed-precision systems keep about 99 % of float's quality (here: of perplexity)",
        recovery(tuple(MIXED_LATENCY), 98.5, 101),
        "`compare.py` with these recipes",
    ),
    Claim(
        "Pure static int8 keeps 95-98 % of it",
        recovery(STATIC, 95, 98),
        "`compare.py` with these recipes",
    ),
    Claim(
        "Zero-shot accuracy of 130 M to 8 B models within 1-3 points of float16",
        lambda files: iter(
            [Finding("", "", "models of this size and six-task accuracies", Verdict.UNTESTABLE)]
        ),
        "",
    ),
)


def document(files: Files) -> str:
    """Return docs/claims.md."""
    lines = [
        "# Claims, and what is measured here",
        "",
        "Written by `python benchmarks/claims.py` from the files under `benchmarks/results`. A claim holds if the",
        "measured value is within the claimed range, or, of two recipes, if the intervals of KL do not touch in any",
        "domain. Models are small (8 to 40 million parameters): of large ones nothing is said.",
    ]
    for claim in CLAIMS:
        findings = list(claim.find(files)) or [
            Finding("", "", f"would be measured by {claim.missing}", Verdict.OPEN)
        ]
        lines += ["", f"## {claim.text}", "", "| model | measured | verdict | machine |", "|---|---|---|---|"]
        lines += [f"| {f.model} | {f.measured} | {f.verdict} | {f.machine} |" for f in findings]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Return the page."""
    return {ROOT / "docs" / "claims.md": document(measured())}


if __name__ == "__main__":
    keep(pages)
