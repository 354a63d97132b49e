"""On a GPU: `CudaEngine` under its graphs against the engine that runs stage by stage on the CPU."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.tiny_models import PARITY, quantised, random_ids

import ssmquant
from ssmquant.data import evaluation_documents, windows
from ssmquant.errors import CheckpointError, InputError
from ssmquant.eval.evaluate import evaluate
from ssmquant.eval.statistics import mean_interval
from ssmquant.ops.registry import use_backend
from ssmquant.runtime.engine import Engine
from ssmquant.runtime.sampling import Sampling, draw
from ssmquant.tolerance import error_ratio

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: graphs are captured")

MODELS = [
    ("mamba", "quamba-w8a8"),
    ("mamba-untied-biased", "quamba-w8a8+ssm_state=int8"),
    ("mamba2-two-groups", "quamba2-w8a8"),
    ("mamba2-two-groups", "quamba2-w8a8+ssm_state=float32"),
    ("mamba2-no-conv-bias", "w8a8-naive"),
    ("mamba2-wide", "quamba2-w4a8"),
    ("mamba2-wide", "ssmquant-w4a8+quantizer=rtn"),
    ("mamba2-untied-biased", "quamba2-w8a8"),
]
STAGED = [
    ("mamba2-two-groups", "fp16"),
    ("mamba2-wide", "ssmquant-w4a16+quantizer=rtn"),
    ("mamba2-wide", "w8a8-dynamic"),
    ("mamba2-no-conv-bias", "quamba2-w8a8+ssm_state=float32+keep=layers.1.x"),
    ("mamba-wide", "awq"),
]


def engines(name: str, recipe: str) -> tuple[Engine, object]:
    """Return the engine on the CPU and what the library chooses on the GPU, of equal models."""
    model = quantised(name, recipe)
    on_gpu = copy.deepcopy(model)
    on_gpu.to("cuda")
    engine = on_gpu.engine()
    assert engine.reason.startswith("stage by stage in graphs") == ((name, recipe) in STAGED)
    return Engine(model.shell, identity=model.digest), engine


@pytest.mark.parametrize(("name", "recipe"), [*MODELS, *STAGED])
def test_it_is_the_engine(name: str, recipe: str) -> None:
    """Prompts of unequal length, and steps over the end of an interval."""
    engine, cuda = engines(name, recipe)
    ids = random_ids(2, 90)
    prompts = [ids[0, :62].tolist(), ids[1, :5].tolist()]
    expected, state = engine.prefill(prompts)
    found, cuda_state = cuda.prefill(prompts)
    off = [error_ratio(found.cpu(), expected)]
    for tokens in ids[:, 66:86].T:
        expected, state = engine.step(tokens, state)
        found, cuda_state = cuda.step(tokens.cuda(), cuda_state)
        off.append(error_ratio(found.cpu(), expected))
    # Where a float sum falls on the other side of a rounding, a code changes.
    assert sum(ratio > PARITY for ratio in off) <= 0.1 * len(off)
    assert max(off) < 1e-2


def test_states_are_saved_forked_and_refused(tmp_path: Path) -> None:
    engine, cuda = engines("mamba2-two-groups", "quamba2-w8a8")
    prompts = [random_ids(1, 70)[0].tolist(), [3, 4]]
    tokens = torch.tensor([5, 7])
    _, state = cuda.prefill(prompts)
    state.save(tmp_path / "state")
    expected, _ = engine.step(tokens, engine.load_state(tmp_path / "state"))
    fork = state.fork()
    first, _ = cuda.step(tokens.cuda(), state)
    assert torch.equal(first, cuda.step(tokens.cuda(), fork)[0])
    assert error_ratio(first.cpu(), expected) < PARITY
    assert torch.equal(first, cuda.step(tokens.cuda(), cuda.load_state(tmp_path / "state"))[0])
    with pytest.raises(InputError, match="fork"):
        cuda.step(tokens.cuda(), state)
    fresh = cuda.load_state(tmp_path / "state")
    with pytest.raises(InputError, match="give one a sequence"):
        cuda.step(tokens[:1].cuda(), fresh)
    with pytest.raises(InputError, match="vocabulary"):
        cuda.step(torch.tensor([5, 10**6]), fresh)
    with pytest.raises(InputError, match="vocabulary"):
        cuda.prefill([[10**6]])
    (tmp_path / "damaged").write_bytes((tmp_path / "state").read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        cuda.load_state(tmp_path / "damaged")


def test_a_seed_draws_the_same_there() -> None:
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(2))
    sampling = Sampling(temperature=1.0, top_p=0.9, seed=4)
    drawn = [
        draw(logits.to(device), [[0]] * 3, sampling, [sampling.generator() for _ in range(3)]).tolist()
        for device in ("cpu", "cuda", "cuda")
    ]
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("recipe", ["ssmquant-w8a8", "ssmquant-w4a8+quantizer=rtn"])
def test_a_trained_model_is_as_far_from_the_float_model_as_on_the_cpu(
    embedded_model: Path, recipe: str, record_property: Callable[[str, object], None]
) -> None:
    """The mean divergence over documents lies within its interval on the CPU."""
    original = ssmquant.load(embedded_model)
    model = ssmquant.quantize(original, recipe, samples=4, seqlen=128, cache=False)
    assert original.tokenizer is not None
    domains = {
        d.name: windows(d.texts, original.tokenizer, seqlen=160, samples=8, source=d.name)
        for d in evaluation_documents(None)
    }
    with use_backend("reference"):
        on_cpu = evaluate(original, [model], domains)
    for one in (original, model):
        one.to("cuda")
    assert not model.engine().reason
    on_gpu = evaluate(original, [model], {name: ids.cuda() for name, ids in domains.items()})
    for name, scores in on_cpu.models[0].domains.items():
        expected, found = scores.divergence, on_gpu.models[0].domains[name].divergence
        assert expected is not None and found is not None
        record_property(name, f"KL {mean_interval(expected.kl)} on the CPU, {found.kl.mean():.6f} on the GPU")
        assert mean_interval(expected.kl).contains(float(found.kl.mean()))
