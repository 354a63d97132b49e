"""Streaming: whole characters, no stop strings, and joined pieces are the whole text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from ssmquant.errors import InputError
from ssmquant.runtime.stream import Detokenizer, StopScanner

CHINESE = "状态空间模型 and the 语言🙂 END é"


def _pieces(tokenizer: PreTrainedTokenizerFast, prompt: list[int], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


def test_characters_of_several_tokens_come_whole(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode(CHINESE)
    pieces = _pieces(tokenizer, tokenizer.encode("前"), ids)
    assert len(ids) > len(CHINESE)  # characters do span tokens
    assert "".join(pieces) == CHINESE
    assert pieces[:3] == ["", "", "状"]
    assert pieces[-1] == ""


@given(st.lists(st.integers(0, 262), max_size=40), st.integers(0, 12))
def test_any_tokens_give_the_text_of_the_whole(
    tokenizer: PreTrainedTokenizerFast, ids: list[int], prompt_characters: int
) -> None:
    prompt = tokenizer.encode(CHINESE[:prompt_characters])
    assert "".join(_pieces(tokenizer, prompt, ids)) == tokenizer.decode(ids)


def test_unfinished_character_comes_at_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.encode("a语")[:-1]
    assert _pieces(tokenizer, [], ids) == ["a", "", "", "\ufffd"]


def test_broken_character_does_not_block(tokenizer: PreTrainedTokenizerFast) -> None:
    first_byte = tokenizer.encode("语")[0]
    assert _pieces(tokenizer, [], [first_byte, *tokenizer.encode("ab")]) == ["", "\ufffda", "b", ""]


def test_special_tokens_are_left_out(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b = tokenizer.encode("ab")
    assert _pieces(tokenizer, [], [a, tokenizer.eos_token_id, b]) == ["a", "", "b", ""]


def test_first_space_after_the_prompt_survives(sentencepiece_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt, ids = [258], [259, 260, 262]  # "▁a" | "▁cat" "▁sat" "o"
    assert sentencepiece_tokenizer.decode(ids) == "cat sato"  # what decoding without the prompt loses
    assert "".join(_pieces(sentencepiece_tokenizer, prompt, ids)) == " cat sato"


def test_byte_tokens_of_sentencepiece_come_whole(sentencepiece_tokenizer: PreTrainedTokenizerFast) -> None:
    ids = [259, *(1 + byte for byte in "语言".encode()), 262]
    assert _pieces(sentencepiece_tokenizer, [258], ids) == [" cat", "", "", "语", "", "", "言", "o", ""]


def _scan(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    scanner = StopScanner(stop)
    text = "".join(scanner.push(piece) for piece in pieces)
    return text + scanner.flush(), scanner.stopped


def test_stop_string_is_cut_out_across_pieces() -> None:
    scanner = StopScanner(("\n\nQ:",))
    assert [scanner.push(piece) for piece in ("A", "b\n", "\nR", "\n\n", "Q", ": more")] == [
        "A",
        "b",
        "\n\nR",
        "",
        "",
        "",
    ]
    assert scanner.stopped
    assert scanner.push("x") + scanner.flush() == ""


def test_beginning_of_a_stop_string_comes_at_the_end() -> None:
    scanner = StopScanner(("END",))
    assert scanner.push("the EN") == "the "
    assert scanner.flush() == "EN"
    assert not scanner.stopped


def test_the_stop_string_that_is_complete_first_counts() -> None:
    assert _scan(("abc", "b"), ["abc"]) == _scan(("abc", "b"), ["a", "b", "c"]) == ("a", True)
    assert _scan(("c", "abc"), ["xabc"]) == ("x", True)


@given(
    st.text("abc", max_size=30),
    st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 30), max_size=8),
)
def test_pieces_do_not_matter(text: str, stop: list[str], cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
    result, stopped = _scan(tuple(stop), pieces)

    assert (result, stopped) == _scan(tuple(stop), list(text))
    assert stopped == any(word in text for word in stop)
    assert text.startswith(result)
    assert not any(word in result for word in stop)
    assert stopped or result == text


def test_one_string_is_one_stop_string() -> None:
    assert StopScanner("END").push("E N D END") == "E N D "


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError, match="stop string is empty"):
        StopScanner(("a", ""))
