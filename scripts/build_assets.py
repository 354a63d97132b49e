"""Rebuild the text and the model that ship inside the package.

    python scripts/build_assets.py CORPUS MODEL

CORPUS holds ``calib/`` and ``eval/``, each with ``{en,zh,code}.jsonl``, a document ``{"text", "source"}`` a line.
MODEL is the folder of the small demonstration model, whose tokenizer measures the documents. Written are
``assets/text/{calib,eval}/{en,zh,code}.jsonl``, ``assets/text/SOURCES.md`` and the model's files; the model card
and ``assets/text/LICENCES.md`` are written by hand. The same input gives the same bytes.

Left out on purpose: every source whose licence is not public domain, CC0, MIT, BSD or Apache; every document that
names a package index or a path of somebody's machine; every calibration document that repeats evaluation text.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

ASSETS = Path(__file__).resolve().parent.parent / "src" / "ssmquant" / "assets"
MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


class Origin(NamedTuple):
    """Where a document comes from: the commit that was read and the licence that its text is under."""

    commit: str
    licence: str


class Amount(NamedTuple):
    """How much one split takes of each domain."""

    size: int  # bytes of UTF-8 text in all
    least: int  # tokens that a document must have
    keep: int  # tokens after which a document ends with its paragraph


class Document(NamedTuple):
    """A document as it is written, with the path in its repository where the corpus knows it."""

    text: str
    source: str
    path: str | None


ORIGINS = {
    "mlschmitt/classic-books-markdown": Origin("944882722e9a", "public domain"),
    "rust-lang/rfcs": Origin("354518a8c902", "MIT OR Apache-2.0"),
    "ethereum/EIPs": Origin("f767a1e8078e", "CC0-1.0"),
    "python/peps": Origin("ba4deeb79695", "public domain OR CC0-1.0"),
    "factbook/factbook.json": Origin("8662a8b17a78", "CC0-1.0"),
    "numpy/numpy": Origin("1f90bbb55e65", "BSD-3-Clause"),
    "sympy/sympy": Origin("e950d313a932", "BSD-3-Clause"),
    "rails/rails": Origin("2a2db1e8d6d1", "MIT"),
    "rust-lang/cargo": Origin("af373f761aa4", "MIT OR Apache-2.0"),
    "etcd-io/etcd": Origin("c34dc7ee0048", "Apache-2.0"),
    "EleutherAI/lm-evaluation-harness": Origin("4e7e0d47f33b", "MIT"),
    "LawRefBook/Laws": Origin("2f4c5c237162", "public domain (statutes; PRC Copyright Law, article 5)"),
    "d2l-ai/d2l-zh": Origin("e6b18ccea714", "Apache-2.0"),
    "chinese-poetry/chinese-poetry": Origin("99ebbef7e134", "MIT"),
}
# Domain -> the repositories that it may draw on. Rails' code is in, its English is not: the guides are CC BY-SA.
TAKEN = {
    "en": (
        "mlschmitt/classic-books-markdown",
        "rust-lang/rfcs",
        "ethereum/EIPs",
        "python/peps",
        "factbook/factbook.json",
        "numpy/numpy",
        "sympy/sympy",
        "rust-lang/cargo",
        "etcd-io/etcd",
    ),
    "zh": ("LawRefBook/Laws", "d2l-ai/d2l-zh", "chinese-poetry/chinese-poetry"),
    "code": (
        "numpy/numpy",
        "sympy/sympy",
        "rails/rails",
        "rust-lang/cargo",
        "etcd-io/etcd",
        "EleutherAI/lm-evaluation-harness",
    ),
}
AMOUNTS = {"eval": Amount(250_000, 1024, 2048), "calib": Amount(450_000, 512, 720)}

UNWANTED = re.compile(
    r"pypi|pythonhosted|npmjs|rubygems|crates[.]io|anaconda[.]org|proxy[.]golang|debian[.]org|huggingface[.]co"
    r"|(?:docker|gcr|quay|ghcr)[.]io|registry[.]\w+[.]|/(?:home|root|tmp|work)/",
    re.IGNORECASE,
)
# Some older PEPs are under the Open Publication License: only those that say otherwise themselves are taken.
STATEMENTS = {"python/peps": re.compile(r"placed in the\s+public\s+domain", re.IGNORECASE)}
WORDS = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")
PARAGRAPH = 2000  # characters within which a paragraph is expected to end
RUN = 13  # words or characters in a row that count as the same passage
REPEATED = (
    0.1  # share of a calibration document's runs that may occur in evaluation text (formulas, boilerplate)
)


def candidates(corpus: Path, split: str, domain: str) -> Iterator[Document]:
    """Yield the documents that may be shipped, in the order of the corpus."""
    with (corpus / split / f"{domain}.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            document = Document(row["text"], row["source"], row.get("path"))
            statement = STATEMENTS.get(document.source)
            stated = statement is None or statement.search(document.text) is not None
            if document.source in TAKEN[domain] and stated and not UNWANTED.search(document.text):
                yield document


def cut(document: Document, tokenizer: Tokenizer, amount: Amount) -> Document | None:
    """Return the document up to the end of the paragraph with token ``amount.keep``; None when it is too short."""
    encoding = tokenizer.encode(document.text)
    if len(encoding.ids) < amount.least:
        return None
    if len(encoding.ids) <= amount.keep:
        return document
    reached = encoding.offsets[amount.keep - 1][1]
    end = document.text.find("\n\n", reached, reached + PARAGRAPH)
    if end < 0:  # generated code and tables may have no blank line for pages
        end = document.text.find("\n", reached)
    return document if end < 0 else document._replace(text=document.text[:end])


def choose(documents: Iterable[Document], size: int) -> list[Document]:
    """Take one document of each source in turn until the next one would pass ``size`` bytes."""
    queues: dict[str, list[Document]] = defaultdict(list)
    for document in documents:
        queues[document.source].append(document)
    rounds = range(max(len(queue) for queue in queues.values()))
    in_turn = [queue[i] for i in rounds for queue in queues.values() if i < len(queue)]
    chosen: list[Document] = []
    for document in in_turn:
        size -= len(document.text.encode())
        if size < 0:
            break
        chosen.append(document)
    return chosen


def runs(text: str) -> set[tuple[str, ...]]:
    """Return every run of ``RUN`` words (Latin letters) or characters (Chinese) of a text."""
    words = WORDS.findall(text.lower())
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def repeated(text: str, evaluated: set[tuple[str, ...]]) -> float:
    """Return the share of a text's runs that occur in the evaluation text."""
    found = runs(text)
    return len(found & evaluated) / max(len(found), 1)


def build_text(corpus: Path, tokenizer: Tokenizer) -> dict[tuple[str, str], list[Document]]:
    """Choose the documents of every (split, domain), evaluation first so that calibration keeps clear of it."""
    chosen: dict[tuple[str, str], list[Document]] = {}
    evaluated: set[tuple[str, ...]] = set()
    for split, amount in AMOUNTS.items():
        for domain in TAKEN:
            short = (cut(document, tokenizer, amount) for document in candidates(corpus, split, domain))
            fit = [document for document in short if document is not None]
            if split == "calib":
                fit = [document for document in fit if repeated(document.text, evaluated) <= REPEATED]
            chosen[split, domain] = choose(fit, amount.size)
        evaluated.update(*(runs(d.text) for (s, _), taken in chosen.items() if s == "eval" for d in taken))
    return chosen


def sources_page(chosen: dict[tuple[str, str], list[Document]]) -> str:
    """Return SOURCES.md: what was taken from where, under which licence."""
    counts = {key: Counter(document.source for document in taken) for key, taken in chosen.items()}
    columns = [(split, domain) for split in ("calib", "eval") for domain in TAKEN]
    titles = [f"{split} {domain}" for split, domain in columns]
    lines = [
        "# Sources of the embedded text",
        "",
        "Written by `scripts/build_assets.py`. Documents were read from public GitHub repositories at the commit",
        "named; longer ones end with a paragraph. Calibration and evaluation text are disjoint, and the evaluation",
        "documents were held out from the training of the embedded model. Copyright notices: LICENCES.md.",
        "",
        f"| repository | commit | licence | {' | '.join(titles)} |",
        "|---|---|---|" + "---:|" * len(columns),
    ]
    for source, origin in ORIGINS.items():
        taken = [str(counts[column][source] or "–") for column in columns]
        lines.append(f"| {source} | {origin.commit} | {origin.licence} | {' | '.join(taken)} |")
    lines += ["", "| split and domain | documents | bytes |", "|---|---:|---:|"]
    for title, column in zip(titles, columns, strict=True):
        size = sum(len(document.text.encode()) for document in chosen[column])
        lines.append(f"| {title} | {len(chosen[column])} | {size:,} |")
    lines += ["", "## Evaluation documents", ""]
    lines += [f"- {domain}: {d.source}, `{d.path}`" for domain in TAKEN for d in chosen["eval", domain]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the two folders named on the command line and write the assets."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("corpus", type=Path, help="folder with calib/ and eval/")
    parser.add_argument("model", type=Path, help="folder of the demonstration model")
    arguments = parser.parse_args()

    chosen = build_text(arguments.corpus, Tokenizer.from_file(str(arguments.model / "tokenizer.json")))
    for (split, domain), documents in chosen.items():
        rows = [{"text": d.text, "source": d.source, "licence": ORIGINS[d.source].licence} for d in documents]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        target = ASSETS / "text" / split / f"{domain}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(lines), encoding="utf-8")
    (ASSETS / "text" / "SOURCES.md").write_text(sources_page(chosen), encoding="utf-8")

    (ASSETS / "mamba2-8m").mkdir(exist_ok=True)
    for name in MODEL_FILES:
        shutil.copyfile(arguments.model / name, ASSETS / "mamba2-8m" / name)


if __name__ == "__main__":
    main()
