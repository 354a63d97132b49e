"""The engine: prompts at once or token by token, alone or in a batch, give the same logits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.tiny_models import PARITY, float_model, quantised, random_ids
from torch import Tensor

import ssmquant
from ssmquant.errors import InputError
from ssmquant.ops.registry import use_backend
from ssmquant.runtime.engine import Engine
from ssmquant.tolerance import error_ratio

FLOATS = ["mamba-no-conv-bias", "falcon_mamba-untied-biased", "mamba2-two-groups", "mamba2-no-conv-bias"]
#: Every recipe, every family, every kind of recurrent state.
QUANTISED = [
    ("mamba", "fp16"),
    ("mamba", "w8a8-naive"),
    ("mamba", "w8a8-dynamic"),
    *(("mamba", f"quamba-w8a8+ssm_state={state}") for state in ("float32", "float16", "int8")),
    ("mamba-wide", "gptq-w4a16"),
    ("mamba-wide", "quamba-w4a8"),
    ("falcon_mamba-untied-biased", "quamba-w8a8"),
    ("mamba2-two-groups", "fp16"),
    ("mamba2-two-groups", "w8a8-naive"),
    ("mamba2-two-groups", "w8a8-dynamic"),
    ("mamba2-two-groups", "quamba-w8a8"),
    *(("mamba2-two-groups", f"quamba2-w8a8+ssm_state={state}") for state in ("float32", "float16", "int8")),
    ("mamba2-untied-biased", "quamba2-w8a8-gptq"),
    ("mamba2-wide", "quamba2-w4a16"),
    ("mamba2-wide", "quamba2-w4a8"),
]
#: Distinct; with twenty steps more, they pass the ends of the scans' chunks and of the state's intervals (64 at most).
LENGTHS = (1, 17, 70, 50, 33)
#: Share of positions at which a float sum may fall on the other side of a rounding, which changes a code.
FLIPPED = 0.1


@pytest.fixture(autouse=True)
def stage_by_stage() -> Iterator[None]:
    """The engine that runs any model, not one for a device."""
    with use_backend("reference"):
        yield


def decoded(engine: Engine, ids: Tensor, read: int) -> Tensor:
    """Return the logits from position ``read - 1`` on, read at once so far and then token by token."""
    logits, state = engine.prefill(ids[:, :read].tolist())
    steps = [logits]
    for position in range(read, ids.shape[1]):
        logits, state = engine.step(ids[:, position], state)
        steps.append(logits)
    return torch.stack(steps, dim=1)


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("read", [1, 40])
def test_float_steps_continue_a_prefill(name: str, read: int) -> None:
    model, ids = float_model(name), random_ids(2, 75)
    found, expected = decoded(model.engine(), ids, read), model.logits(ids)[:, read - 1 :]
    for position in range(found.shape[1]):
        assert error_ratio(found[:, position], expected[:, position]) <= PARITY


def interval_of(model: ssmquant.Model) -> int:
    """Return the tokens between two roundings of the state; 0 if it is float32."""
    return model.shell.blocks[0].mixer.state.interval


def positions_off(found: Tensor, expected: Tensor) -> Tensor:
    """Return the error ratio of each position ``[L]`` that is beyond float sums, zero where it is not."""
    ratios = (found - expected).double().norm(dim=-1) / expected.double().norm(dim=-1)
    return torch.where(ratios > PARITY, ratios, 0.0).flatten()


@pytest.mark.parametrize(("name", "recipe"), QUANTISED)
def test_quantised_steps_continue_a_prefill(name: str, recipe: str) -> None:
    model, ids = quantised(name, recipe), random_ids(2, 75)
    expected = model.logits(ids)
    off = positions_off(decoded(model.engine(), ids, 9), expected[:, 8:])
    assert (off > 0).double().mean() <= FLIPPED
    # One code more or less cannot be worse than rounding every tensor to codes.
    rounding = error_ratio(expected, float_model(name).logits(ids))
    assert off.max() <= rounding


@pytest.mark.parametrize("lost", ["conv", "ssm", "pending"])
def test_a_part_of_the_state_that_is_lost_shows(lost: str) -> None:
    """The bounds of the test above are not met by a wrong state."""
    model = quantised("mamba2-two-groups", "quamba2-w8a8")
    read = interval_of(model) + 20
    ids, engine = random_ids(2, read + 20), model.engine()
    _, state = engine.prefill(ids[:, :read].tolist())
    for layer in state.groups[0].layers:
        setattr(layer, lost, () if lost == "pending" else torch.zeros_like(getattr(layer, lost)))
    steps = []
    for position in range(read, read + 20):
        logits, state = engine.step(ids[:, position], state)
        steps.append(logits)
    off = positions_off(torch.stack(steps, dim=1), model.logits(ids)[:, read:])
    assert (off > 0).double().mean() > 3 * FLIPPED


def unequal() -> tuple[list[list[int]], Tensor]:
    prompts = [random_ids(1, length, seed=length)[0].tolist() for length in LENGTHS]
    return prompts, random_ids(len(prompts), 20, seed=99)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mamba", None),
        ("mamba2-two-groups", None),
        ("mamba", "quamba-w8a8"),
        ("mamba2-two-groups", "w8a8-dynamic"),
        ("mamba2-two-groups", "quamba2-w8a8"),
        ("mamba2-wide", "quamba2-w4a8"),
    ],
)
def test_prompts_of_unequal_length_are_as_if_alone(name: str, recipe: str | None) -> None:
    model = float_model(name) if recipe is None else quantised(name, recipe)
    engine = model.engine()
    prompts, continuation = unequal()
    logits, state = engine.prefill(prompts)
    together = [logits]
    for tokens in continuation.T:
        logits, state = engine.step(tokens, state)
        together.append(logits)
    for row, prompt in enumerate(prompts):
        logits, alone = engine.prefill([prompt])
        assert torch.equal(together[0][row], logits[0])
        for position, token in enumerate(continuation[row], start=1):
            logits, alone = engine.step(token[None], alone)
            assert torch.equal(together[position][row], logits[0])


@pytest.mark.parametrize("name", ["mamba", "mamba2-two-groups"])
def test_prompts_of_one_length_are_as_if_alone_up_to_float_sums(name: str) -> None:
    engine, ids = float_model(name).engine(), random_ids(3, 30)
    together = decoded(engine, ids, 20)
    for row in range(3):
        assert error_ratio(together[row], decoded(engine, ids[row : row + 1], 20)[0]) <= PARITY


@pytest.fixture(scope="module")
def model() -> ssmquant.Model:
    return quantised("mamba2-two-groups", "quamba2-w8a8")


def test_a_step_leaves_the_state_before_it_as_it_was(model: ssmquant.Model) -> None:
    engine = model.engine()
    prompts, continuation = unequal()
    _, state = engine.prefill(prompts)
    tokens = continuation[:, 0]
    first, after = engine.step(tokens, state)
    engine.step(continuation[:, 1], after)
    again, _ = engine.step(tokens, state)
    assert torch.equal(first, again)
    assert [group.tokens for group in state.groups] == sorted(LENGTHS)
    assert [group.tokens for group in after.groups] == sorted(length + 1 for length in LENGTHS)


def test_a_fork_goes_on_by_itself(model: ssmquant.Model) -> None:
    engine = model.engine()
    prompts, continuation = unequal()
    _, state = engine.prefill(prompts)
    fork = state.fork()
    for tokens in continuation.T[:3]:
        _, fork = engine.step(tokens, fork)
    other, _ = engine.step(continuation[:, 7], state)
    fresh, _ = engine.step(continuation[:, 7], engine.prefill(prompts)[1])
    assert torch.equal(other, fresh)


def test_selected_rows_go_on_in_the_order_asked_for(model: ssmquant.Model) -> None:
    engine = model.engine()
    prompts, continuation = unequal()
    _, state = engine.prefill(prompts)
    _, state = engine.step(continuation[:, 0], state)
    rows = torch.tensor([4, 0, 2])
    selected = state.select(rows)
    expected, _ = engine.step(continuation[:, 1], state)
    for step in range(1, 4):  # a second selection of a selection is one of the rows that are left
        found, selected = engine.step(continuation[rows, step], selected)
        expected, state = engine.step(continuation[:, step], state)
        assert torch.equal(found, expected[rows])
    found, _ = engine.step(continuation[rows[1:], 4], selected.select(torch.tensor([1, 2])))
    expected, _ = engine.step(continuation[:, 4], state)
    assert torch.equal(found, expected[rows[1:]])


def test_rows_of_one_length_can_be_selected_in_any_order(model: ssmquant.Model) -> None:
    engine, ids = model.engine(), random_ids(4, 21)
    _, state = engine.prefill(ids.tolist())
    rows = torch.tensor([3, 1, 0])
    _, reordered = engine.prefill(ids[rows].tolist())
    tokens = torch.tensor([5, 6, 7])
    assert torch.equal(engine.step(tokens, state.select(rows))[0], engine.step(tokens, reordered)[0])


@pytest.mark.parametrize(("state_type", "element"), [("float32", 4), ("float16", 2), ("int8", 1)])
def test_bytes_of_the_state_are_those_at_rest(state_type: str, element: int) -> None:
    model = quantised("mamba2-two-groups", f"quamba2-w8a8+ssm_state={state_type}")
    interval = interval_of(model) or 16
    _, state = model.engine().prefill([[1] * interval, [2] * (2 * interval)])  # nothing is pending
    layers, sequences = 3, 2
    conv = (96 + 2 * 2 * 16) * 4  # int8 codes of the inputs
    assert state.nbytes == sequences * layers * (conv + 12 * 8 * 16 * element)


def test_tokens_of_an_unfinished_interval_are_kept_as_codes() -> None:
    model = quantised("mamba2-two-groups", "quamba2-w8a8")
    interval = interval_of(model)
    assert interval > 1
    sizes = []
    for length in (interval, interval + 1, 2 * interval - 1, 2 * interval):
        _, state = model.engine().prefill([[1] * length])
        sizes.append(state.nbytes)
    a_token = 3 * (96 + 2 * 2 * 16 + 12)  # layers × (x, B and C, dt), int8
    assert [size - sizes[0] for size in sizes] == [0, a_token, (interval - 1) * a_token, 0]


def test_a_prompt_without_tokens_is_refused(model: ssmquant.Model) -> None:
    with pytest.raises(InputError, match="prompt 1 has no tokens"):
        model.engine().prefill([[1], []])
