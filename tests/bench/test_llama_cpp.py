"""llama-bench, played by a script that writes down how it was called."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssmquant.bench.llama_cpp import LlamaCpp
from ssmquant.bench.workload import Times, Workload
from ssmquant.errors import InputError, SsmquantError

COMMON = {
    "build_commit": "abc1234",
    "model_type": "mamba2 130M Q8_0",
    "model_size": 140,
    "model_n_params": 1000,
}
PREFILL = {**COMMON, "n_prompt": 512, "n_gen": 0, "samples_ns": [2_000_000_000]}
DECODE = {**COMMON, "n_prompt": 0, "n_gen": 128, "samples_ns": [3_000_000_000]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.gguf").write_text("")
    write_program(tmp_path, f"cat <<'END'\n{json.dumps([PREFILL, DECODE])}\nEND")
    return tmp_path


def write_program(folder: Path, body: str) -> None:
    program = folder / "llama-bench"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\n{body}\n')
    program.chmod(0o755)


def peer(folder: Path, parameters: int = 1000) -> LlamaCpp:
    return LlamaCpp(folder / "llama-bench", folder / "model.gguf", 2, parameters)


def test_it_runs_the_same_work_once_a_repetition(folder: Path) -> None:
    llama = peer(folder)
    facts = llama.start()
    assert (facts.name, facts.recipe, facts.weight_bytes) == ("llama.cpp abc1234", "Q8_0", 140)
    assert llama.run(Workload(512, 128)) == Times(2.0, 3.0)
    call = (folder / "calls").read_text().splitlines()[1]
    assert call == f"-m {folder}/model.gguf -t 2 -o json -p 512 -n 128 -r 1"


def test_its_memory_is_seen_while_it_runs(folder: Path) -> None:
    script = "import time; block = bytearray(200_000_000); time.sleep(1)"
    write_program(folder, f"cat <<'END'\n{json.dumps([PREFILL, DECODE])}\nEND\nexec python3 -c '{script}'")
    llama = peer(folder)
    llama.run(Workload(1, 1))
    assert 200e6 < llama.peak_bytes() < 300e6


def test_another_model_is_refused(folder: Path) -> None:
    assert peer(folder, 1010).start().parameters == 1000  # a vocabulary padded otherwise
    with pytest.raises(InputError, match="1,000 parameters, ours has 2,000; compare the same model"):
        peer(folder, 2000).start()


def test_failures_are_told_with_what_it_said(folder: Path) -> None:
    write_program(folder, "echo first >&2; echo 'unknown model architecture' >&2; exit 3")
    with pytest.raises(
        SsmquantError, match="ended with status 3: unknown model architecture; run it by hand"
    ):
        peer(folder).start()


@pytest.mark.parametrize(
    ("missing", "message"), [("llama-bench", "is no program"), ("model.gguf", "no such file")]
)
def test_missing_files_are_refused_at_once(folder: Path, missing: str, message: str) -> None:
    (folder / missing).unlink()
    with pytest.raises(InputError, match=message):
        peer(folder)
