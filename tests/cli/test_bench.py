"""`ssmquant bench` on the embedded model, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_models import quantised

from ssmquant.bench import measure as module
from ssmquant.bench import peers, probe, worker
from ssmquant.bench.contestant import Facts
from ssmquant.bench.subjects import SubjectSpec
from ssmquant.bench.workload import Times, Workload, run_workload
from ssmquant.data import builtin_model
from ssmquant.errors import SsmquantError

FLOAT = builtin_model()
SMALL = ("--prompt-len", 8, "--gen-len", 2, "--repeats", 2, "--threads", 1)


class Here:
    """A model run in this process: what a worker does in its own is tested there."""

    def __init__(self, spec: SubjectSpec, threads: int) -> None:
        self.spec, self.device, self.threads = spec, spec.device, threads

    def start(self) -> Facts:
        self.subject = self.spec.load()
        return self.subject.facts

    def run(self, workload: Workload) -> Times:
        return run_workload(self.subject.engine, workload, self.subject.vocab, lambda: None)

    def peak_bytes(self) -> int:
        return 1

    def close(self) -> None:
        pass


def test_a_model_is_measured_beside_another(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_SECONDS", 0.02)
    monkeypatch.setattr(worker, "Worker", Here)
    monkeypatch.setattr(peers, "Worker", Here)
    file = tmp_path / "bench.json"
    outcome = run("bench", FLOAT, *SMALL, "--against", "hf-bfloat16", "--json", file)
    assert outcome.status == 0, outcome
    assert "prompt 8, 2 steps, batch 1, 1 threads, cpu" in " ".join(outcome.stdout.split())
    result = json.loads(file.read_text(encoding="utf-8"))
    ours, peer = result["rows"]
    assert (ours["name"], ours["recipe"]) == (FLOAT.name, "float32")
    assert peer["recipe"] == "bfloat16"
    assert peer["weight_bytes"] == ours["weight_bytes"] / 2
    assert result["environment"]["threads"] == 1
    decode = result["ratios"][0]["decode"]
    assert decode["p20"] <= decode["p50"] <= decode["p80"]


def test_the_peer_of_a_quantised_folder_is_tied_as_the_float_model_was(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised("mamba2-two-groups", "quamba2-w8a8").save(tmp_path / "out")
    contestants = captured(monkeypatch)
    assert run("bench", tmp_path / "out", "--against", "hf-float32").status == 1
    assert contestants[1].spec.config.tie_word_embeddings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "either a model or a --shape"),
        ((FLOAT, "--shape", "mamba2-130m"), "either a model or a --shape"),
        ((FLOAT, "--recipe", "quamba2-w8a8"), "--recipe quamba2-w8a8 goes with --shape"),
        (("--shape", "mamba2-131m"), "did you mean 'mamba2-130m'?"),
        (("--shape", "mamba-130m", "--recipe", "quamba2-w8a8"), "use quamba-w8a8"),
        (("--shape", "mamba2-130m", "--recipe", "quamba2-w8a9"), "did you mean 'quamba2-w8a8'?"),
        (("no/such/folder",), "no/such/folder"),
        ((FLOAT, "--against", "no/such/peer"), "no/such/peer"),
        (("--shape", "mamba2-130m", "--against", "quamba2-w4a9"), "did you mean 'quamba2-w4a8'?"),
        ((FLOAT, "--against", "llama.cpp"), "needs --llama-bench PATH and --gguf FILE"),
        (
            (FLOAT, "--against", "llama.cpp", "--llama-bench", "x", "--gguf", "y", "--batch", 2),
            "use --batch 1",
        ),
        ((FLOAT, "--against", "llama.cpp", "--llama-bench", "x", "--gguf", "y"), "x is no program"),
        ((FLOAT, "--json", "{folder}"), "is a folder"),
        ((FLOAT, "--gen-len", 0), "gen-len"),
    ],
)
def test_bad_input_is_refused_before_anything_is_loaded(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[Any, ...], message: str
) -> None:
    monkeypatch.setattr(worker.Worker, "start", lambda *_: pytest.fail("loaded"))
    outcome = run("bench", *(str(word).format(folder=tmp_path) for word in arguments))
    assert outcome.status == 2
    assert message in " ".join(outcome.stderr.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == []


def test_a_shape_is_compared_with_itself_in_another_recipe(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    contestants = captured(monkeypatch)
    outcome = run("bench", "--shape", "mamba2-130m", "--against", "quamba2-w4a8", "--against", "hf")
    assert (outcome.status, outcome.stderr.strip()) == (1, "error: captured")
    specs = [contestant.spec for contestant in contestants]
    assert [spec.recipe for spec in specs[:2]] == ["quamba2-w8a8", "quamba2-w4a8"]
    assert [spec.dtype for spec in specs[2:]] == ["float32", "bfloat16"]


def captured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that the contestants of the next command come into, in place of being measured."""
    contestants: list[Any] = []

    def capture(found: list[Any], *_: object) -> None:
        contestants.extend(found)
        raise SsmquantError("captured")

    monkeypatch.setattr(module, "measure", capture)
    return contestants
