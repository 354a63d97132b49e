"""How far the activations of a model reach: outliers, stability between inputs, and what static ranges cover.

    python benchmarks/outliers.py MODEL --data en.jsonl,zh.jsonl,code.jsonl -o results/outliers-NAME

For a Mamba model the sites are ssmquant's; for any other that transformers loads, the inputs of its linear layers. The
text is read twice: ranges come from the even documents of each domain, and the odd ones say how well they hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor, nn

import ssmquant
from ssmquant.cli.files import write_json
from ssmquant.data import evaluation_documents, windows
from ssmquant.errors import ModelError
from ssmquant.eval.environment import environment

SIGMAS = (3, 5, 6, 10)
COLUMN = 6.0  # magnitude from which LLM.int8() (arXiv 2208.07339) takes a column for an outlier


@dataclass
class Reach:
    """What one site was seen to hold. Tensors are shown to `first` in one pass and to `second` in another."""

    count: int = 0
    absolute: float = 0.0
    square: float = 0.0
    fourth: float = 0.0
    channels: Tensor = field(default_factory=lambda: torch.zeros(1))
    documents: list[float] = field(default_factory=list)
    fitted: float = 0.0
    beyond: dict[int, int] = field(default_factory=lambda: dict.fromkeys(SIGMAS, 0))
    held: list[tuple[int, int, int, int]] = field(default_factory=list)

    @property
    def sigma(self) -> float:
        """Root mean square: activations are measured from zero, as symmetric codes are."""
        return (self.square / self.count) ** 0.5

    def first(self, x: Tensor, *, fits: bool) -> None:
        """See a document ``[tokens, C]``; the static range is fitted to some of them."""
        magnitude = x.double().abs()
        self.count += x.numel()
        self.absolute += float(magnitude.sum())
        self.square += float(magnitude.square().sum())
        self.fourth += float(magnitude.pow(4).sum())
        self.channels = torch.maximum(self.channels, magnitude.amax(dim=0))
        largest = float(magnitude.max())
        self.documents.append(largest)
        self.fitted = max(self.fitted, largest) if fits else self.fitted

    def second(self, x: Tensor, *, fits: bool) -> None:
        """See it again: count what is beyond multiples of sigma, and what the fitted range holds of other documents."""
        magnitude = x.abs()
        for multiple in SIGMAS:
            self.beyond[multiple] += int((magnitude > multiple * self.sigma).sum())
        if not fits:
            inside = magnitude <= self.fitted
            tokens = inside.all(dim=-1)
            self.held.append((int(inside.sum()), inside.numel(), int(tokens.sum()), tokens.numel()))

    def to_json(self) -> dict[str, Any]:
        """Return the numbers of the site."""
        documents = torch.tensor(self.documents)
        median = documents.median()
        inside, elements, whole, tokens = (sum(column) for column in zip(*self.held, strict=True))
        return {
            "absmax": float(documents.max()),
            "mean_abs": self.absolute / self.count,
            "sigma": self.sigma,
            "kurtosis": self.fourth / self.count / self.sigma**4,
            "max_over_mean": float(documents.max()) * self.count / self.absolute,
            "channel_max_over_median": float(self.channels.max() / self.channels.median()),
            "beyond": {str(multiple): number / self.count for multiple, number in self.beyond.items()},
            "outlier_columns": float((self.channels >= COLUMN).double().mean()),
            "documents_within_10_percent": float(((documents / median - 1).abs() <= 0.1).double().mean()),
            "document_spread": float(documents.std() / documents.mean()),
            "static_range_holds": {"elements": inside / elements, "tokens": whole / tokens},
        }


class Subject:
    """A model whose activations are watched: its tokenizer, its forward pass, and its sites by name."""

    def __init__(self, path: str) -> None:
        try:
            model = ssmquant.load(path)
        except ModelError:  # no Mamba
            from transformers import AutoModelForCausalLM, AutoTokenizer

            network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
            self.run: Any = network
            self.sites: dict[str, nn.Module] = {
                name.removeprefix("model."): module
                for name, module in network.named_modules()
                if isinstance(module, nn.Linear)
            }
        else:
            self.tokenizer, self.run, self.sites = (
                model.tokenizer,
                model.logits,
                dict(model.shell.activations()),
            )
            # States are no activations: they are met between pieces of a sequence.
            self.sites = {name: site for name, site in self.sites.items() if not name.endswith(".state")}

    @contextmanager
    def watched(self, see: Any) -> Iterator[None]:
        """Call ``see(name, x [tokens, C])`` for each site in every forward pass."""
        with ExitStack() as hooks:
            for name, module in self.sites.items():

                def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Any, name: str = name) -> None:
                    see(name, inputs[0].flatten(0, -2).float())

                hooks.callback(module.register_forward_hook(hook).remove)
            yield


def measure(subject: Subject, domains: dict[str, Tensor], progress: Any) -> dict[str, Reach]:
    """Return what each site holds over some text, int64 ``[documents, L]`` a domain."""
    reaches = {name: Reach() for name in subject.sites}
    documents = [(place, ids) for domain in domains.values() for place, ids in enumerate(domain)]
    passes = [(look, *document) for look in (Reach.first, Reach.second) for document in documents]
    for done, (look, place, ids) in enumerate(passes, start=1):

        def see(name: str, x: Tensor, look: Any = look, place: int = place) -> None:
            look(reaches[name], x, fits=place % 2 == 0)

        with torch.no_grad(), subject.watched(see):
            subject.run(ids[None])
        progress(done, len(passes))
    return reaches


def main(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a float model.")],
    data: Annotated[str, typer.Option(help="Text.")] = "builtin",
    samples: int = 16,
    seqlen: int = 512,
    output: Annotated[Path, typer.Option("-o", help="Result file without ending.")] = Path("outliers"),
) -> None:
    """Measure the activations of a model."""
    console, start = Console(stderr=True), time.perf_counter()
    subject = Subject(model)
    domains = {
        documents.name: windows(
            documents.texts, subject.tokenizer, seqlen=seqlen, samples=samples, source=documents.name
        )
        for documents in evaluation_documents(data)
    }
    reaches = measure(subject, domains, lambda done, total: console.print(f"document {done} of {total}"))
    result = {
        "environment": environment(),
        "model": Path(model).name,
        "command": f"python benchmarks/outliers.py {Path(model).name} --samples {samples} --seqlen {seqlen}",
        "domains": {name: ids.numel() for name, ids in domains.items()},
        "seconds": round(time.perf_counter() - start, 1),
        "sites": [{"site": name, **reach.to_json()} for name, reach in reaches.items()],
    }
    write_json(output.with_suffix(".json"), result)
    console.print(f"{len(reaches)} sites written to {output.with_suffix('.json')}")


if __name__ == "__main__":
    typer.run(main)
