"""Our mixers under transformers' forward: cache, left padding, generation, beam search."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tiny_models import PARITY, float_model, quantised, random_ids, reference, saved
from torch import Tensor

import ssmquant
from ssmquant.errors import InputError
from ssmquant.runtime.generate import generate
from ssmquant.tolerance import error_ratio

LENGTHS = (5, 21, 13)
#: None with a dt_limit: transformers applies it to whole sequences and forgets it in its decode step.
FLOATS = ["mamba-untied-biased", "falcon_mamba-untied-biased", "mamba2-untied-biased"]
MODELS = [
    *((name, None) for name in (*FLOATS, "mamba2-two-groups")),
    ("mamba", "quamba-w8a8"),
    ("mamba2-two-groups", "quamba2-w8a8"),
    ("mamba2-two-groups", "w8a8-dynamic"),
]


def model_of(name: str, recipe: str | None) -> ssmquant.Model:
    return float_model(name) if recipe is None else quantised(name, recipe)


def prompts() -> list[list[int]]:
    return [random_ids(1, length, seed=length)[0].tolist() for length in LENGTHS]


def left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    return ids, torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])


@pytest.mark.parametrize(("name", "recipe"), MODELS)
@torch.no_grad()
def test_a_row_gives_the_same_in_a_padded_batch_as_alone(name: str, recipe: str | None) -> None:
    model = model_of(name, recipe)
    rows = prompts()
    ids, mask = left_padded(rows)
    logits = model.module(ids, attention_mask=mask).logits
    for row, found in zip(rows, logits, strict=True):
        alone = model.logits(torch.tensor([row]))[0]
        if model.plan is not None and "lm_head.weight" in model.plan.schemes:
            assert torch.equal(found[-len(row) :], alone)
        else:  # transformers calls the float head once for the whole batch: another order of its sums
            assert error_ratio(found[-len(row) :], alone) <= PARITY


@pytest.mark.parametrize(("name", "recipe"), MODELS)
@torch.no_grad()
def test_a_cache_goes_on_where_the_tokens_before_ended(name: str, recipe: str | None) -> None:
    model = model_of(name, recipe)
    ids = random_ids(2, 41)
    first = model.module(ids[:, :20], use_cache=True)
    second = model.module(ids[:, 20:40], cache_params=first.cache_params, use_cache=True)
    last = model.module(ids[:, 40:], cache_params=second.cache_params, use_cache=True)
    logits, state = model.engine().prefill(ids[:, :20].tolist())
    assert error_ratio(first.logits[:, -1], logits) <= PARITY
    for step in range(20, 41):
        logits, state = model.engine().step(ids[:, step], state)
        if step == 39:
            assert error_ratio(second.logits[:, -1], logits) <= PARITY
    assert error_ratio(last.logits[:, -1], logits) <= PARITY


@torch.no_grad()
def test_a_cache_that_is_reset_has_forgotten() -> None:
    model = float_model("mamba2-two-groups")
    ids = random_ids(2, 9)
    first = model.module(ids, use_cache=True)
    first.cache_params.reset()
    again = model.module(ids, cache_params=first.cache_params, use_cache=True)
    assert torch.equal(again.logits, first.logits)


def generated(model: Any, ids: Tensor, **options: Any) -> list[list[int]]:
    mask = torch.ones_like(ids) if "attention_mask" not in options else options.pop("attention_mask")
    found = model.generate(ids, attention_mask=mask, max_new_tokens=24, do_sample=False, **options)
    return [row[ids.shape[1] :].tolist() for row in found]


@pytest.mark.parametrize("name", FLOATS)
def test_transformers_generates_what_its_own_model_does(name: str) -> None:
    ids = random_ids(2, 11)
    assert generated(float_model(name).module, ids) == generated(reference(saved(name)), ids)


@pytest.mark.parametrize(("name", "recipe"), MODELS)
def test_transformers_generates_what_we_do(name: str, recipe: str | None) -> None:
    model = model_of(name, recipe)
    assert model.tokenizer is not None
    rows = prompts()
    ids, mask = left_padded(rows)
    theirs = generated(model.module, ids, attention_mask=mask)
    texts = [model.tokenizer.decode(row) for row in rows]
    assert [model.tokenizer.encode(text) for text in texts] == rows
    ours = generate(model.engine(), model.tokenizer, texts, max_new_tokens=24)
    for found, expected in zip(theirs, ours, strict=True):
        # transformers fills a row that has ended with padding (0, also the end of text) up to the longest one.
        length = len(expected.token_ids)
        assert found[:length] == list(expected.token_ids)
        assert not any(found[length:])


@pytest.mark.parametrize("name", FLOATS)
def test_beam_search_is_that_of_transformers(name: str) -> None:
    ids = random_ids(2, 11)
    ours = generated(float_model(name).module, ids, num_beams=3)
    assert ours == generated(reference(saved(name)), ids, num_beams=3)
    assert ours != generated(float_model(name).module, ids)  # there was something to search


def test_beam_search_reorders_reduced_states() -> None:
    model = quantised("mamba2-two-groups", "quamba2-w8a8").module
    ids = random_ids(2, 11)
    together = generated(model, ids, num_beams=3)
    alone = [generated(model, row[None], num_beams=3)[0] for row in ids]
    for found, expected in zip(together, alone, strict=True):
        assert found[: len(expected)] == expected


def test_beam_search_over_prompts_of_different_lengths_is_refused() -> None:
    ids, mask = left_padded(prompts())
    with pytest.raises(InputError, match="beam search needs prompts of one length"):
        generated(float_model("mamba2").module, ids, attention_mask=mask, num_beams=2)


def test_padding_on_the_right_is_refused() -> None:
    ids, mask = left_padded(prompts())
    with pytest.raises(InputError, match="pad prompts on the left"):
        float_model("mamba2").module(ids, attention_mask=mask.flip(1))
