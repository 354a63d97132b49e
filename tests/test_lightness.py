"""What running a quantised model leaves unimported: libraries that take more memory than a small model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.tiny_models import quantised

HEAVY = {
    "sympy",
    "scipy.stats",
    "scipy.cluster",
    "scipy.optimize",
    "torch._dynamo",
    "torch._inductor",
    "triton",
}
TEXTS = {"transformers.modeling_utils", "transformers.models.mamba2.modeling_mamba2"}


def loaded(code: str, of: set[str]) -> set[str]:
    """Run code in a fresh interpreter and return which of some modules it has loaded."""
    report = f"import sys; sys.stderr.write('loaded:' + ','.join({of!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(filter(None, done.stderr.rpartition("loaded:")[2].split(",")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantised") / "out"
    quantised("mamba2-two-groups", "quamba2-w8a8").save(path)
    return path


def test_a_text_is_generated_without_the_modelling_code_of_transformers(folder: Path) -> None:
    code = (
        f"import ssmquant; print(ssmquant.load({str(folder)!r}).generate('\\u0101\\u0102', max_new_tokens=3))"
    )
    assert loaded(code, HEAVY | TEXTS) == set()


def test_a_model_without_texts_is_run_without_transformers(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(folder / f"{name}.aside")
    try:
        code = f"import ssmquant; ssmquant.load({str(folder)!r}).engine().prefill([[1, 2, 3]])"
        assert loaded(code, HEAVY | {"transformers"}) == set()
    finally:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / f"{name}.aside").rename(folder / name)


def test_a_random_shape_is_run_without_transformers() -> None:
    code = """
from ssmquant.bench.shapes import SHAPES
SHAPES["tiny"] = SHAPES["mamba2-130m"] | {"d_model": 128, "n_layer": 1, "vocab_size": 100}
from ssmquant.bench.subjects import OurModel
OurModel("tiny", "quamba2-w8a8", "cpu").load().engine.prefill([[1, 2, 3]])
"""
    assert loaded(code, HEAVY | {"transformers"}) == set()


def test_transformers_own_model_is_made_when_it_is_asked_for(folder: Path) -> None:
    code = f"import ssmquant; ssmquant.load({str(folder)!r}).module"
    assert loaded(code, TEXTS) == TEXTS
