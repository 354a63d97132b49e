"""The GPU engine's launches in Triton's interpreter, against the engine; and its bookkeeping of slots."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tests.ops.interpreter import needs_interpreter
from tests.tiny_models import PARITY, float_model, quantised, random_ids
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.runtime.engine import Engine
from ssmquant.runtime.state_file import read_state
from ssmquant.tolerance import error_ratio

if TYPE_CHECKING:
    from ssmquant.runtime.cuda.launches import Launches

pytestmark = needs_interpreter

#: Each format of weight, kind of state and mixer.
MODELS = [
    ("mamba2-two-groups", "quamba2-w8a8"),
    ("mamba2-two-groups", "quamba2-w8a8+ssm_state=float32"),
    ("mamba2-no-conv-bias", "w8a8-naive"),
    ("mamba2-wide", "quamba2-w4a8"),
    ("mamba2-wide", "ssmquant-w4a8+quantizer=rtn"),
    ("mamba", "quamba-w8a8"),
    ("mamba-untied-biased", "quamba-w8a8+ssm_state=int8"),
]

#: What is not static int8 throughout, stage by stage: the kernels there are the CPU's.
STAGES = [
    ("mamba2-two-groups", "fp16"),
    ("mamba2-untied-biased", "quamba2-w8a8+ssm_state=float32+keep=layers.1.x"),
    ("mamba2-wide", "ssmquant-w4a16+quantizer=rtn"),
    ("mamba2-wide", "awq"),
    ("mamba2-no-conv-bias", "w8a8-dynamic"),
    ("mamba-no-conv-bias", "fp16"),
    ("mamba-wide", "gptq-w4a16"),
    ("falcon_mamba", "quamba-w8a8+ssm_state=float32"),
]


def launches_of(name: str, recipe: str) -> Launches:
    from ssmquant.runtime.cuda.launches import Launches
    from ssmquant.runtime.cuda.network import network_of
    from ssmquant.runtime.cuda.slots import Slots
    from ssmquant.runtime.cuda.stages import stages_of

    shell = quantised(name, recipe).shell
    network = stages_of(shell) if (name, recipe) in STAGES else network_of(shell)
    return Launches(network, Slots(network.mixers.memory, network.device, lambda: None))


@torch.no_grad()
def run(name: str, recipe: str, prompts: list[list[int]], steps: Tensor) -> Tensor:
    """Return the logits ``[steps + 1, B, vocab]`` of the GPU's launches, run on the CPU."""
    launches = launches_of(name, recipe)
    pool = launches.pool
    slots = pool.take(len(prompts))[::-1]
    where = torch.tensor(slots, dtype=torch.int32)
    first = [launches.read(torch.tensor([p]), where[i : i + 1]) for i, p in enumerate(prompts)]
    logits = [torch.cat(first)]
    for tokens in steps:
        logits.append(launches.step(tokens, where, torch.ones(len(prompts), dtype=torch.int32)))
        interval = launches.mixers.interval
        due = [s for s in slots if interval > 1 and pool.positions[s] % interval == 0]
        if due:
            launches.mixers.round(torch.tensor(due, dtype=torch.int32), pool.tensors)
    assert pool.positions.tolist() == [len(p) + len(steps) for p in reversed(prompts)]
    return torch.stack(logits)


@pytest.mark.parametrize(("name", "recipe"), MODELS)
def test_launches_are_the_engine(name: str, recipe: str) -> None:
    """Prompts of unequal length, then steps in one batch, over the end of an interval for one row."""
    ids = random_ids(2, 70)
    prompts, steps = [ids[0, :62].tolist(), ids[1, :5].tolist()], ids[:, 66:70].T
    engine = quantised(name, recipe).engine()
    logits, state = engine.prefill(prompts)
    expected = [logits]
    for tokens in steps:
        logits, state = engine.step(tokens, state)
        expected.append(logits)
    found = run(name, recipe, prompts, steps)
    float_logits = float_model(name).engine().prefill(prompts)[0]
    rounding = error_ratio(expected[0], float_logits)
    off = torch.tensor(
        [error_ratio(a, b) for f, e in zip(found, expected, strict=True) for a, b in zip(f, e, strict=True)]
    )
    # Where a float sum falls on the other side of a rounding, a code changes: not often, and by no more than rounding.
    assert (off > PARITY).double().mean() <= 0.3
    assert off.max() <= rounding


@pytest.mark.parametrize(("name", "recipe"), STAGES)
def test_launches_of_stages_are_the_engine(name: str, recipe: str) -> None:
    ids = random_ids(2, 70)
    prompts, steps = [ids[0, :62].tolist(), ids[1, :5].tolist()], ids[:, 66:70].T
    engine = Engine(quantised(name, recipe).shell)
    logits, state = engine.prefill(prompts)
    expected = [logits]
    for tokens in steps:
        logits, state = engine.step(tokens, state)
        expected.append(logits)
    assert error_ratio(run(name, recipe, prompts, steps), torch.stack(expected)) < PARITY


@pytest.mark.parametrize(
    "recipe", ["fp16", "quamba2-w4a8+ssm_state=float32", "w8a8-dynamic", "atom-w4a8", "squeezellm"]
)
@torch.no_grad()
def test_stages_ask_the_device_for_nothing(recipe: str) -> None:
    """Tensors without data know no value that a launch could wait for."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ssmquant.runtime.cuda.stages import stages_of

    shell = copy.deepcopy(quantised("mamba2-wide", recipe).shell)
    with FakeTensorMode(allow_non_fake_inputs=True):
        stages = stages_of(shell)
        memory = stages.mixers.memory(3, torch.device("cpu"))
        residual = stages.embedding(torch.zeros(2, dtype=torch.int64))
        stages.mixers.step(residual, torch.zeros(2, dtype=torch.int32), torch.zeros(3), memory)
        assert stages.logits(residual).shape == (2, 257)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mamba2-two-groups", "quamba2-w8a8"),
        ("mamba-untied-biased", "quamba-w8a8+ssm_state=int8"),
        ("mamba2-untied-biased", "quamba2-w8a8+ssm_state=float32+keep=layers.1.x"),
    ],
)
@torch.no_grad()
def test_saved_states_are_the_engines(name: str, recipe: str, tmp_path: Path) -> None:
    """What a slot holds is what the engine would save; read back into another slot, it steps as before."""
    from ssmquant.runtime.cuda.records import from_record, to_record

    model = quantised(name, recipe)
    prompts = [[5, 9], [1, 2, 3, 4, 5, 6, 7]]  # fewer than the convolution's taps, and more
    engine = Engine(model.shell)
    _, state = engine.prefill(prompts)
    state.save(tmp_path / "state")
    expected = read_state(tmp_path / "state", model.shell, identity="")

    launches = launches_of(name, recipe)
    pool = launches.pool
    for prompt, record in zip(prompts, expected, strict=True):
        slots = pool.take(3)
        launches.read(torch.tensor([prompt]), torch.tensor(slots[:1], dtype=torch.int32))
        found = to_record(launches.mixers, pool.tensors, slots[0], len(prompt))
        assert found.tokens == record.tokens
        for layer, of_engine in zip(found.layers, record.layers, strict=True):
            assert layer.pending.keys() == of_engine.pending.keys()
            pairs = [(layer.conv, of_engine.conv), (layer.ssm, of_engine.ssm)]
            pairs += [
                (layer.pending[part], of_engine.pending[part]) for part in ("x", "B") if part in layer.pending
            ]
            assert all(torch.equal(a, b) for a, b in pairs)
        # Codes of dt beyond its limits mean the same, so what counts of dt is the next step.
        for slot, saved in zip(slots[1:], (record, found), strict=True):
            for tensor in pool.tensors.values():
                tensor[:, slot] = 77
            from_record(launches.mixers, pool.tensors, slot, saved)
            pool.positions[slot] = saved.tokens
        one = torch.ones(1, dtype=torch.int32)
        logits = [
            launches.step(torch.tensor([8]), torch.tensor([slot], dtype=torch.int32), one) for slot in slots
        ]
        assert torch.equal(logits[0], logits[1])
        assert torch.equal(logits[0], logits[2])


def test_slots_are_shared_copied_and_returned() -> None:
    from ssmquant.runtime.cuda.engine import CudaState
    from ssmquant.runtime.cuda.slots import Slots

    moves: list[int] = []
    pool = Slots(
        lambda n, d: {"x": torch.zeros(1, n, 2, device=d)}, torch.device("cpu"), lambda: moves.append(1)
    )
    state = CudaState(pool, pool.take(3), [5, 6, 7], lambda path, state: None)
    assert (state.slots, len(pool), moves) == ([0, 1, 2], 3, [1])
    pool.tensors["x"][0, :, 0] = torch.tensor([1.0, 2.0, 3.0])
    fork = state.fork()
    assert pool.alone(fork.slots) == [3, 4, 5]
    assert pool.tensors["x"][0, 3:, 0].tolist() == [1.0, 2.0, 3.0]
    fork.hand_over()
    kept = state.select(torch.tensor([2, 0]))
    assert (kept.slots, kept.positions) == ([2, 0], [7, 5])
    del state
    assert pool.take(1) == [1]  # the only slot that nobody holds
    kept.hand_over()
    with pytest.raises(InputError, match="fork"):
        kept.fork()


def test_the_products_of_a_model_are_named_by_op_and_shape() -> None:
    from ssmquant.runtime.cuda.network import network_of

    found = network_of(quantised("mamba2-wide", "ssmquant-w4a8+quantizer=rtn").shell).products()
    assert found == {
        "int4_progressive_linear": [(1096, 256), (256, 512)],
        "norm_int4_progressive_linear": [(1096, 256)],
        "int8_linear": [(257, 256)],
        "norm_int8_linear": [(257, 256)],
    }
    found = network_of(quantised("mamba", "quamba-w8a8").shell).products()
    assert found["norm_int8_linear"] == [(192, 48), (257, 48)]  # in_proj and the head


def test_what_cannot_run_is_declined_with_the_reason() -> None:
    from ssmquant.runtime.cuda.engine import CudaEngine
    from ssmquant.runtime.cuda.network import Unsupported, network_of
    from ssmquant.runtime.cuda.stages import stages_of

    with pytest.raises(Unsupported, match="static"):
        network_of(quantised("mamba2-two-groups", "w8a8-dynamic").shell)
    with pytest.raises(Unsupported, match="outliers"):
        stages_of(quantised("mamba2-two-groups", "llm-int8").shell)
    with pytest.raises(Unsupported, match="ssm_state=float32"):
        stages_of(quantised("mamba2-two-groups", "quamba2-w8a8").shell)
    with pytest.raises(Unsupported, match="cuda"):
        CudaEngine.of(quantised("mamba2-two-groups", "quamba2-w8a8").shell)


def test_an_engine_says_why_it_runs_stage_by_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssmquant.runtime.cuda import engine

    monkeypatch.setattr(engine, "_check_device", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: None)
    assert engine.CudaEngine.of(quantised("mamba2-two-groups", "quamba2-w8a8").shell).reason == ""
    staged = engine.CudaEngine.of(quantised("mamba2-two-groups", "fp16").shell)
    assert staged.reason.startswith("stage by stage in graphs: ")
    assert "static int8" in staged.reason
