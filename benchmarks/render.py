"""Write docs/results.md, and the results in README.md, from the measured files under benchmarks/results.

python benchmarks/render.py            # write
python benchmarks/render.py --check    # exit with 1 if a file would change
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from pages import ROOT, keep, measured

from ssmquant.eval.statistics import ratio_interval

# (recipe, other, most that its KL may be, times the other's). Without its outlier columns LLM.int8() is w8a8-dynamic.
GOALS = (
    ("ssmquant-w8a8", "llm-int8", 1.2),
    ("ssmquant-w8a8+ssm_state=int8", "llm-int8", 1.6),
    ("ssmquant-w8a8", "w8a8-dynamic", 1.2),
    ("ssmquant-w8a8+ssm_state=int8", "w8a8-dynamic", 1.6),
    ("ssmquant-w4a8", "atom-w4a8", 1.0),
    ("ssmquant-w4a8+group_size=32", "atom-w4a8", 1.0),
    ("ssmquant-w4ax", "atom-w4a8", 1.0),
    ("ssmquant-w4a8", "quamba2-w4a8+quantizer=rtn", 0.5),
    ("ssmquant-w4a8", "quamba-w4a8+quantizer=rtn", 0.5),
    ("ssmquant-w4a16", "awq", 1.0),
    ("ssmquant-w4a16", "squeezellm+sparse=0", 1.0),
    ("ssmquant-w4a16", "squeezellm", 1.1),
)
# (recipe of mixed widths, all int4, all int8): how much of the KL between the two it takes away.
RECOVERIES = (("w4ax", "quamba2-w4a8", "quamba2-w8a8"), ("quamba-w4ax", "quamba-w4a8", "quamba-w8a8"))
BEGIN, END = "<!-- results: begin, written by benchmarks/render.py -->", "<!-- results: end -->"


def percent(ratio: float) -> str:
    """Return a ratio as a signed difference in percent."""
    return f"{100 * (ratio - 1):+.2f}"


def machine(environment: dict[str, Any]) -> str:
    """Return where and when something was measured."""
    where = f"{environment['cpu']} and {environment['gpu']}" if environment["gpu"] else environment["cpu"]
    return f"{where}, torch {environment['torch']}, {environment['date'][:10]}"


def how(result: dict[str, Any]) -> str:
    """Return how something was measured."""
    return (
        f"`{result['command']}`, {result['calibration']}; {evaluated(result['models'][0]['domains'])} "
        f"{machine(result['environment'])}."
    )


def evaluated(domains: dict[str, Any]) -> str:
    """Return how many tokens were evaluated."""
    tokens = ", ".join(f"{name} {entry['tokens']:,}" for name, entry in domains.items())
    return f"tokens evaluated: {tokens}."


def compared(result: dict[str, Any]) -> list[str]:
    """Return the table of recipes, the closest to the float model first."""
    domains = list(result["rows"][0]["domains"])
    lines = [
        "| recipe | group | weight bits | act. bits | MB | state KB | float, % | KL, mean | "
        + " | ".join(f"KL {d} | ppl {d}, %" for d in domains)
        + " | peak MB | prefill × | decode × |",
        "|---|---|---|---|---|---|---|---|" + "---|" * (2 * len(domains) + 3),
    ]
    for row in sorted(result["rows"], key=lambda row: row["kl"]):
        cells = [
            f"`{row['recipe']}`",
            row["letters"],
            f"{row['bits_weight']:.2f}",
            str(row["bits_activation"]),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['state_bytes'] / 1e3:.0f}",
            f"{100 * row['float_share']:.0f}",
            f"{row['kl']:.5f} [{row['kl_ci'][0]:.5f}, {row['kl_ci'][1]:.5f}]",
        ]
        for entry in row["domains"].values():
            low, high = (percent(bound) for bound in entry["ppl_ratio_ci"])
            cells += [f"{entry['kl']:.5f}", f"{percent(entry['ppl_ratio'])} [{low}, {high}]"]
        mark = "*" if row["by_stages"] else ""
        cells += [
            f"{row['peak_bytes'] / 1e6:.0f}",
            f"{row['prefill_rel']:.2f}{mark}",
            f"{row['decode_rel']:.2f}{mark}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def goals(result: dict[str, Any]) -> list[str]:
    """Return the table of what our recipes are held to, as ratios of KL over the same documents."""
    documents = {row["recipe"]: np.array(row["kl_documents"]) for row in result["rows"]}
    lines = ["| recipe | beside | KL, times that of the other | goal | |", "|---|---|---|---|---|"]
    for recipe, other, goal in GOALS:
        if recipe in documents and other in documents:
            ratio = ratio_interval(documents[recipe], documents[other])
            lines.append(
                f"| `{recipe}` | `{other}` | {ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}] | ≤ {goal} | "
                f"{'reached' if ratio.value <= goal else 'missed'} |"
            )
    for mixed, four, eight in RECOVERIES:
        if {mixed, four, eight} <= documents.keys():
            share = ratio_interval(documents[four] - documents[mixed], documents[four] - documents[eight])
            lines.append(
                f"| `{mixed}` | between `{four}` and `{eight}` | {share.value:.0%} of the way "
                f"[{share.low:.0%}, {share.high:.0%}] | ≥ 50% | {'reached' if share.value >= 0.5 else 'missed'} |"
            )
    return lines


def sites(result: dict[str, Any]) -> list[str]:
    """Return the table of sites by what leaving each in float32 takes off the KL of the whole recipe."""
    whole, *others = result["models"]
    domains = list(whole["domains"])
    saved = {
        other["model"].rpartition("keep=")[2]: [
            1 - other["domains"][d]["kl"] / whole["domains"][d]["kl"] for d in domains
        ]
        for other in others
    }
    base = ", ".join(f"{d} {whole['domains'][d]['kl']:.4f}" for d in domains)
    lines = [
        f"KL of `{whole['model']}`: {base}.",
        "",
        "| left in float32 | " + " | ".join(f"KL saved {d}, %" for d in domains) + " |",
        "|---|" + "---|" * len(domains),
    ]
    for pattern, shares in sorted(saved.items(), key=lambda item: -sum(item[1])):
        lines.append(f"| `{pattern}` | " + " | ".join(f"{100 * share:+.1f}" for share in shares) + " |")
    return lines


def drift(result: dict[str, Any]) -> list[str]:
    """Return the table of KL by position, mean of the domains."""
    rows = {name: list(by_domain.values()) for name, by_domain in result["kl_by_position"].items()}
    pieces = len(next(iter(rows.values()))[0])
    step = result["tokens"] // pieces
    lines = [
        "| state | " + " | ".join(f"to {(i + 1) * step:,}" for i in range(pieces)) + " |",
        "|---|" + "---|" * pieces,
    ]
    for name, domains in rows.items():
        means = (sum(domain[i] for domain in domains) / len(domains) for i in range(pieces))
        lines.append(f"| {name} | " + " | ".join(f"{mean:.5f}" for mean in means) + " |")
    return lines


def document(results: dict[str, dict[str, Any]]) -> str:
    """Return docs/results.md."""
    lines = [
        "# Results",
        "",
        "Written by `python benchmarks/render.py` from the files under `benchmarks/results`. KL in nats a token of the",
        "next-token distributions, perplexity relative to the float32 model, on the same tokens; 95 % bootstrap",
        "intervals over documents. A difference is shown only where its interval excludes zero; p is of a sign-flip",
        "permutation test over documents, not corrected for the number of comparisons.",
    ]
    for name, result in sorted(results.items()):
        if name.startswith("compare-"):
            model, calibration = name.removeprefix("compare-"), result["calibration"]
            lines += [
                "",
                f"## Recipes on {model}",
                "",
                f"`python benchmarks/compare.py {model}`, {calibration['samples']} calibration sequences of "
                f"{calibration['seqlen']} tokens of the text within the package; "
                f"{evaluated(result['rows'][0]['domains'])} Recipes that share a letter cannot be told apart. Float: "
                "share of the linear layers' multiplications done on floats. × is time over float32's stage by stage, "
                "in the engine that ran the recipe when this was measured; *: none did, stage by stage. Float and "
                f"weight-only recipes have an engine by now ([speed.md](speed.md)). {machine(result['environment'])}. "
                f"All tests: [{name}.md](../benchmarks/results/{name}.md).",
                "",
                *compared(result),
                "",
                "What our recipes are held to, paired over documents:",
                "",
                *goals(result),
            ]
    for name, result in sorted(results.items()):
        if name.startswith("sites-"):
            model = name.removeprefix("sites-")
            lines += ["", f"## Which site costs how much: {model}", "", how(result), "", *sites(result)]
    for name, result in sorted(results.items()):
        if name.startswith("drift-"):
            lines += [
                "",
                f"## The state over {result['tokens']:,} tokens: {name.removeprefix('drift-')}",
                "",
                f"`{result['command']}`; KL by position in running text, mean of the domains (one sequence each, so "
                f"compare along a column). {machine(result['environment'])}.",
                "",
                *drift(result),
            ]
    return "\n".join(lines) + "\n"


def summary(results: dict[str, dict[str, Any]]) -> str:
    """Return the results in README.md: KL, mean of the domains, and bytes of each recipe without options."""
    models = {
        name.removeprefix("compare-"): r["rows"] for name, r in results.items() if name.startswith("compare-")
    }
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for model, rows in sorted(models.items(), reverse=True):
        for row in rows:
            if "+" not in row["recipe"]:
                found.setdefault(row["recipe"], {})[model] = row
    titles = [
        f"{column} {model}" for model in sorted(models, reverse=True) for column in ("MB", "KL", "ppl, %")
    ]
    lines = [f"| recipe | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
    for recipe, by_model in sorted(
        found.items(), key=lambda item: min(row["kl"] for row in item[1].values())
    ):
        cells = [f"`{recipe}`"]
        for model in sorted(models, reverse=True):
            row = by_model.get(model)
            ratio = mean(entry["ppl_ratio"] for entry in row["domains"].values()) if row else 0
            cells += [f"{row['bytes'] / 1e6:.1f}", f"{row['kl']:.4f}", percent(ratio)] if row else ["–"] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """Return the pages: README.md with another table between its marks."""
    results = measured()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return {
        ROOT / "docs" / "results.md": document(results),
        ROOT / "README.md": f"{before}{BEGIN}\n{summary(results)}\n{END}{after}",
    }


if __name__ == "__main__":
    keep(pages)
