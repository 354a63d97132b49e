"""Generation: batches, stops, streams and edges, over toy engines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ssmquant.errors import InputError
from ssmquant.runtime.generate import Generation, generate
from ssmquant.runtime.sampling import Sampling

PROMPTS = ["the", "a much longer prompt and then some", "语言模型", "x"]
Script = Callable[..., Any]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(0.9, top_k=20, top_p=0.9, repetition_penalty=1.2, seed=4)],
    ids=["greedy", "sampled"],
)
def test_batch_gives_what_each_prompt_gives_alone(
    recurrent_engine: Any, tokenizer: PreTrainedTokenizerFast, sampling: Sampling
) -> None:
    # A stop that ends the rows at different lengths, so that some run on after others have finished.
    options: dict[str, Any] = {"max_new_tokens": 40, "sampling": sampling, "stop_token_ids": range(60, 72)}
    together = generate(recurrent_engine, tokenizer, PROMPTS, **options)
    alone = [generate(recurrent_engine, tokenizer, [prompt], **options)[0] for prompt in PROMPTS]

    assert together == alone
    assert len({len(result.token_ids) for result in together}) > 1
    assert len({result.text for result in together}) == len(PROMPTS)


def test_seed_changes_the_text_and_repeats_it(
    recurrent_engine: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    def text(seed: int) -> str:
        return generate(recurrent_engine, tokenizer, ["x"], sampling=Sampling(1.0, seed=seed))[0].text

    assert text(1) == text(1) != text(2)


def test_streamed_pieces_joined_are_the_texts(
    recurrent_engine: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    pieces: dict[int, list[str]] = defaultdict(list)
    results = generate(
        recurrent_engine,
        tokenizer,
        PROMPTS,
        sampling=Sampling(1.0, seed=2),
        stop=("e", "z"),
        stream=lambda index, piece: pieces[index].append(piece),
    )
    assert ["".join(pieces[index]) for index in range(len(PROMPTS))] == [result.text for result in results]
    assert all(piece for row in pieces.values() for piece in row)


def test_stop_string_spanning_tokens(script_engine: Script, tokenizer: PreTrainedTokenizerFast) -> None:
    engine = script_engine("the 语言 END. more", "and ENDURE the END", "the EN")
    pieces: dict[int, list[str]] = defaultdict(list)
    results = generate(
        engine,
        tokenizer,
        ["a", "b", "c"],
        max_new_tokens=12,
        stop=(" END.", "and EN", "DX"),
        stream=lambda index, piece: pieces[index].append(piece),
    )
    assert [result.text for result in results][:2] == ["the 语言", ""]
    assert [result.finish_reason for result in results] == ["stop", "stop", "length"]
    # The tokens that made up the stop string are reported; those after it were never asked for.
    assert list(results[0].token_ids) == tokenizer.encode("the 语言 END.")
    assert pieces[0] == ["the", " 语", "言"]  # a space might begin " END."
    assert 1 not in pieces


def test_stop_token_ends_the_text(script_engine: Script, tokenizer: PreTrainedTokenizerFast) -> None:
    eos = tokenizer.eos_token_id
    word = tokenizer.encode(" the")
    engine = script_engine([*word, eos, *word], [*word, *word, *word])
    short, long = generate(engine, tokenizer, ["a", "b"], max_new_tokens=3)
    assert short == Generation(" the", (*word, eos), "stop")
    assert long == Generation(" the the the", (*word, *word, *word), "length")
    assert engine.rows_of_steps == [2, 1]  # nothing is computed after the last token of a row


def test_stop_token_ids_replace_the_default(
    script_engine: Script, tokenizer: PreTrainedTokenizerFast
) -> None:
    a, b = tokenizer.encode("ab")
    ids = [a, tokenizer.eos_token_id, b, a]
    (result,) = generate(script_engine(ids), tokenizer, ["x"], stop_token_ids={b})
    assert result == Generation("a", tuple(ids[:3]), "stop")


def test_text_held_for_a_stop_string_comes_at_the_end(
    script_engine: Script, tokenizer: PreTrainedTokenizerFast
) -> None:
    pieces: list[str] = []
    (result,) = generate(
        script_engine("aEN语"),
        tokenizer,
        ["x"],
        max_new_tokens=3,
        stop="END",
        stream=lambda _, piece: pieces.append(piece),
    )
    assert pieces == ["a", "EN\ufffd"]
    assert result.text == "aEN\ufffd"


@pytest.mark.parametrize("special", ["bos_token", "eos_token"])
def test_empty_prompt_starts_from_a_special_token(
    make_tokenizer: Script, script_engine: Script, special: str
) -> None:
    tokenizer = make_tokenizer(**{special: "<s>"})
    engine = script_engine("a")
    generate(engine, tokenizer, [""], max_new_tokens=1)
    assert engine.prompts == [[tokenizer.convert_tokens_to_ids("<s>")]]


def test_empty_prompt_without_special_tokens_is_refused(
    make_tokenizer: Script, script_engine: Script
) -> None:
    with pytest.raises(InputError, match="prompt is empty"):
        generate(script_engine("a"), make_tokenizer(), [""])


def test_no_prompts_give_no_texts(script_engine: Script, tokenizer: PreTrainedTokenizerFast) -> None:
    assert generate(script_engine(), tokenizer, []) == []


def test_zero_tokens_are_refused(script_engine: Script, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(InputError, match="max_new_tokens=0"):
        generate(script_engine("a"), tokenizer, ["x"], max_new_tokens=0)
