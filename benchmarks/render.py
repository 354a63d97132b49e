"""Write docs/results.md, and the results in README.md, from the measured files under benchmarks/results.

python benchmarks/render.py            # write
python benchmarks/render.py --check    # exit with 1 if a file would change
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin, written by benchmarks/render.py -->", "<!-- results: end -->"


def percent(ratio: float) -> str:
    """Return a ratio as a signed difference in percent."""
    return f"{100 * (ratio - 1):+.2f}"


def machine(environment: dict[str, Any]) -> str:
    """Return where and when something was measured."""
    where = f"{environment['cpu']} and {environment['gpu']}" if environment["gpu"] else environment["cpu"]
    return f"{where}, torch {environment['torch']}, {environment['date'][:10]}"


def how(result: dict[str, Any]) -> str:
    """Return how a result was measured."""
    domains = result["models"][0]["domains"]
    tokens = ", ".join(f"{name} {entry['tokens']:,}" for name, entry in domains.items())
    return (
        f"`{result['command']}`, {result['calibration']}; tokens evaluated: {tokens}. "
        f"{machine(result['environment'])}."
    )


def scores(result: dict[str, Any]) -> list[str]:
    """Return the table of KL and perplexity with intervals."""
    domains = list(result["models"][0]["domains"])
    lines = [
        "| recipe | weights MB | state KB a sequence | "
        + " | ".join(f"KL {d} | ppl {d}, %" for d in domains)
        + " |",
        "|---|---|---|" + "---|" * (2 * len(domains)),
    ]
    for model in result["models"]:
        facts = result["facts"][model["model"]]
        cells = [f"{facts['weight_bytes'] / 1e6:.1f}", f"{facts['state_bytes'] / 1e3:.0f}"]
        for entry in model["domains"].values():
            low, high = (percent(bound) for bound in entry["ppl_ratio_ci"])
            cells.append(f"{entry['kl']:.4f} [{entry['kl_ci'][0]:.4f}, {entry['kl_ci'][1]:.4f}]")
            cells.append(f"{percent(entry['ppl_ratio'])} [{low}, {high}]")
        lines.append(f"| `{model['model']}` | " + " | ".join(cells) + " |")
    return lines


def pairs(result: dict[str, Any]) -> list[str]:
    """Return the table of paired differences of KL."""
    lines = [
        "| first | second | domain | KL first - second | 95 % interval | p |",
        "|---|---|---|---|---|---|",
    ]
    for pair in result["paired"]:
        low, high = pair["ci"]
        difference = f"{pair['kl_diff']:+.5f}" if low > 0 or high < 0 else "no difference shown"
        lines.append(
            f"| `{pair['a']}` | `{pair['b']}` | {pair['domain']} | {difference} | [{low:+.5f}, {high:+.5f}] | "
            f"{pair['p']:.2g} |"
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
        if name.startswith("recipes-"):
            model = name.removeprefix("recipes-")
            lines += ["", f"## Recipes on {model}", "", how(result), "", *scores(result)]
            lines += [
                "",
                "<details><summary>Paired differences</summary>",
                "",
                *pairs(result),
                "",
                "</details>",
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
    """Return the results in README.md: recipes by model, KL and perplexity averaged over the domains."""
    lines = ["| model | recipe | weights MB | KL, mean of domains | perplexity, % |", "|---|---|---|---|---|"]
    for name, result in sorted(results.items()):
        if not name.startswith("recipes-"):
            continue
        for model in result["models"]:
            entries = list(model["domains"].values())
            kl = sum(entry["kl"] for entry in entries) / len(entries)
            ratio = sum(entry["ppl_ratio"] for entry in entries) / len(entries)
            megabytes = result["facts"][model["model"]]["weight_bytes"] / 1e6
            cells = [name.removeprefix("recipes-"), f"`{model['model']}`", f"{megabytes:.1f}", f"{kl:.4f}"]
            lines.append(f"| {' | '.join([*cells, percent(ratio)])} |")
    return "\n".join(lines)


def main(
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if a file is not up to date.")
    ] = False,
) -> None:
    """Write the documents from the measured files."""
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    documents = {
        ROOT / "docs" / "results.md": document(results),
        ROOT / "README.md": f"{before}{BEGIN}\n{summary(results)}\n{END}{after}",
    }
    stale = [p for p, text in documents.items() if not p.is_file() or p.read_text(encoding="utf-8") != text]
    if check and stale:
        typer.echo(f"not up to date: {', '.join(str(path.relative_to(ROOT)) for path in stale)}", err=True)
        raise typer.Exit(1)
    for path in stale:
        path.write_text(documents[path], encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
