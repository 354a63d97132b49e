"""Speed on the CPU of random models of published shapes, beside llama.cpp, transformers and the limits of the machine.

    python benchmarks/cpu.py list                                     # the cases
    python benchmarks/cpu.py run --llama-bench PATH --gguf DIR        # all of them; finished ones are left alone
    python benchmarks/cpu.py run mamba2-2.7b-w8a8 growth-mamba2-130m  # some, again
    python benchmarks/render_speed.py                                 # docs/speed.md

Each case is one file under benchmarks/results. benchmarks/peers/README.md says how to get llama-bench and the GGUF
files, which are called SHAPE-q8_0.gguf and SHAPE-q4_0.gguf. The eval cases want folders written by `ssmquant quantize`
(--quantized DIR), called MODEL-RECIPE. The machine should have nothing else to do; ratios are of
neighbours in time all the same, and each repetition has its own probe of the limits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import typer
from rich.console import Console

from ssmquant.bench.contestant import Contestant
from ssmquant.bench.measure import measure
from ssmquant.bench.peers import Request, find_peers
from ssmquant.bench.probe import find_probe
from ssmquant.bench.results import Percentiles
from ssmquant.bench.shapes import default_recipe, shape_config
from ssmquant.bench.subjects import OurModel
from ssmquant.bench.worker import Worker
from ssmquant.bench.workload import Workload
from ssmquant.cli.files import write_json
from ssmquant.eval.environment import environment

RESULTS = Path(__file__).resolve().parent / "results"
W4A8 = "ssmquant-w4a8"
NEIGHBOUR = "while True: pass"


@dataclass(frozen=True)
class Setting:
    """What all cases share.

    Attributes:
        threads: of every contestant.
        repeats: repetitions that count.
        llama_bench: llama.cpp's program.
        gguf: folder of its models.
        quantized: folder of our own quantised models, MODEL-RECIPE each.
    """

    threads: int
    repeats: int
    llama_bench: Path | None
    gguf: Path
    quantized: Path

    def request(self, shape: str, recipe: str, workload: Workload, quant: str) -> Request:
        """Return what `find_peers` wants to know."""
        ours = OurModel(shape, recipe, "cpu")
        file = self.gguf / f"{shape}-{quant}.gguf"
        return Request(ours, shape_config(shape), workload, self.threads, self.llama_bench, file)


Case = Callable[[Setting], dict[str, Any]]


def beside_peers(shape: str, recipe: str, quant: str, *against: str) -> Case:
    """Return the case of a shape in turns with its peers."""

    def run(setting: Setting) -> dict[str, Any]:
        workload = Workload(repeats=setting.repeats)
        request = setting.request(shape, recipe, workload, quant)
        contestants = [Worker(request.ours, setting.threads)]
        peers = [peer for word in against for peer in find_peers(word, request)]
        found = measure([*contestants, *peers], find_probe("cpu", setting.threads), workload)
        words = " ".join(f"--against {word}" for word in against)
        return {"command": f"ssmquant bench --shape {shape} --recipe {recipe} {words}", **found.to_json()}

    return run


def growth(shape: str, prompts: tuple[int, ...]) -> Case:
    """Return the case of ever longer prompts, and of the steps after them."""

    def run(setting: Setting) -> dict[str, Any]:
        rows = []
        for prompt_len in prompts:
            workload = Workload(prompt_len, repeats=setting.repeats)
            ours = Worker(OurModel(shape, default_recipe(shape), "cpu"), setting.threads)
            found = measure([ours], find_probe("cpu", setting.threads), workload).to_json()
            rows += found["rows"]
        return {"environment": found["environment"], "probe": found["probe"], "rows": rows}

    return run


def busy(shape: str) -> Case:
    """Return the case of another process that computes on one core, for ours and for llama.cpp."""

    def run(setting: Setting) -> dict[str, Any]:
        workload = Workload(repeats=setting.repeats)
        request = setting.request(shape, default_recipe(shape), workload, "q8_0")
        contestants = [Worker(request.ours, setting.threads), *find_peers("llama.cpp", request)]
        rows = [disturbed(contestant, workload) for contestant in contestants]
        isa = find_probe("cpu", setting.threads).isa
        return {"environment": environment() | {"threads": setting.threads, "isa": isa}, "busy": rows}

    return run


def evaluation(model: str, recipe: str) -> Case:
    """Return the case of `ssmquant eval` from its start to its end: imports, loading, packing, reading, the table."""

    def run(setting: Setting) -> dict[str, Any]:
        folder = setting.quantized / f"{model}-{recipe}"
        seconds = []
        with tempfile.TemporaryDirectory() as place:
            file = Path(place) / "eval.json"
            command = [sys.executable, "-m", "ssmquant", "eval", str(folder), "--json", str(file)]
            for _ in range(setting.repeats):
                start = perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                seconds.append(perf_counter() - start)
            domains = json.loads(file.read_text(encoding="utf-8"))["domains"].values()
        row = {
            "name": model,
            "recipe": recipe,
            "command": f"ssmquant eval {folder.name}",
            "tokens": sum(domain["tokens"] for domain in domains),
            "seconds": Percentiles.of(seconds)._asdict(),
        }
        isa = find_probe("cpu", setting.threads).isa
        return {"environment": environment() | {"threads": setting.threads, "isa": isa}, "evaluation": row}

    return run


def disturbed(contestant: Contestant, workload: Workload) -> dict[str, Any]:
    """Return how much of its speed a contestant keeps beside a busy process, each repetition with and without."""
    with closing(contestant):
        facts = contestant.start()
        contestant.run(workload.warm_up())
        alone, beside = [], []
        for _ in range(workload.repeats):
            alone.append(contestant.run(workload))
            with neighbour():
                beside.append(contestant.run(workload))
    pairs = list(zip(alone, beside, strict=True))
    return {
        "name": facts.name,
        "recipe": facts.recipe,
        "decode_tps_alone": Percentiles.of([workload.gen_len / t.decode for t in alone])._asdict(),
        "decode_kept": Percentiles.of([a.decode / b.decode for a, b in pairs])._asdict(),
        "prefill_kept": Percentiles.of([a.prefill / b.prefill for a, b in pairs])._asdict(),
    }


@contextmanager
def neighbour() -> Iterator[None]:
    """Let another process compute on one core."""
    process = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
    try:
        yield
    finally:
        process.kill()
        process.wait()


CASES: dict[str, Case] = {
    **{
        f"{shape}-w8a8": beside_peers(shape, default_recipe(shape), "q8_0", "llama.cpp")
        for shape in ("mamba2-370m", "mamba2-1.3b", "mamba2-2.7b")
    },
    **{
        f"{shape}-w8a8": beside_peers(shape, default_recipe(shape), "q8_0", "llama.cpp", "hf")
        for shape in ("mamba-130m", "mamba2-130m")
    },
    **{
        f"{shape}-w4a8": beside_peers(shape, W4A8, "q4_0", "llama.cpp", default_recipe(shape))
        for shape in ("mamba2-370m", "mamba2-1.3b", "mamba2-2.7b")
    },
    **{
        f"{shape}-fp16": beside_peers(shape, "fp16", "f16", "llama.cpp", "hf")
        for shape in ("mamba-130m", "mamba2-130m")
    },
    "busy-mamba2-370m": busy("mamba2-370m"),
    "growth-mamba2-130m": growth("mamba2-130m", (512, 2048, 8192, 32_768, 100_000)),
    "eval-mamba2-29m": evaluation("mamba2-29m", "quamba2-w8a8"),
    "growth-mamba-130m": growth("mamba-130m", (512, 2048, 8192, 32_768)),
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("list")
def show() -> None:
    """Show the cases, and which have been measured."""
    for name in CASES:
        typer.echo(f"{name}{' (measured)' if result(name).is_file() else ''}")


def result(name: str) -> Path:
    """Return the file of a case."""
    return RESULTS / f"cpu-{name}.json"


@app.command()
def run(
    names: Annotated[
        list[str] | None, typer.Argument(help="Cases; those not measured yet without one.")
    ] = None,
    llama_bench: Annotated[Path | None, typer.Option(help="llama.cpp's llama-bench.")] = None,
    gguf: Annotated[Path, typer.Option(help="Folder of the GGUF files.")] = Path(),
    quantized: Annotated[Path, typer.Option(help="Folder of quantised models, MODEL-RECIPE each.")] = Path(),
    threads: Annotated[int, typer.Option(help="Of every contestant; all cores without it.")] = 0,
    repeats: Annotated[int, typer.Option(help="Repetitions that count.")] = 5,
) -> None:
    """Measure cases and write their files."""
    console = Console(stderr=True)
    setting = Setting(threads or environment()["cores"], repeats, llama_bench, gguf, quantized)
    for name in names or [name for name in CASES if not result(name).is_file()]:
        console.print(name)
        found = CASES[name](setting)
        write_json(result(name), {"command": f"python benchmarks/cpu.py run {name}"} | found)


if __name__ == "__main__":
    app()
