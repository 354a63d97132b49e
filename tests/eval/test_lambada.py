from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ssmquant.errors import CheckFailed, DataError
from ssmquant.eval.lambada import compare_lambada, lambada, load_lambada, split_last_word

RIGHT = "the ca, ca,"
WRONG = "the ca, cb,"


def test_accuracy_and_perplexity_are_those_worked_out_by_hand(chain: Any, tokenizer: Any) -> None:
    vocab = len(tokenizer)
    hit = 8 - math.log(math.exp(8) + vocab - 1)
    miss = -math.log(math.exp(8) + vocab - 1)
    unknown = -math.log(vocab)  # after "b", of which the model knows nothing
    scores = lambada(chain, tokenizer, [RIGHT, WRONG, RIGHT], batch=2)
    assert scores.correct.tolist() == [True, False, True]
    # " ca," is right throughout; of " cb," the space and the "c" are, "b" is not.
    assert scores.nll.tolist() == pytest.approx([-4 * hit, -(2 * hit + miss + unknown), -4 * hit], rel=1e-6)
    report = scores.to_json()
    assert report["accuracy"] == pytest.approx(2 / 3)
    assert report["ppl"] == pytest.approx(math.exp(float(scores.nll.mean())))
    assert report["accuracy_ci"] == pytest.approx([0.2077, 0.9385], abs=1e-4)
    assert report["passages"] == 3


def test_only_the_last_word_counts(chain: Any, tokenizer: Any) -> None:
    """A context that the model would never write costs it nothing."""
    scores = lambada(chain, tokenizer, ["zzz, ca,", "the ca, ca, ca, ca,"])
    assert scores.correct.all()
    assert scores.nll[0] == scores.nll[1]


def test_models_are_compared_on_the_same_passages(chain: Any, tokenizer: Any, make_bigram: Any) -> None:
    ignorant = make_bigram("ignorant", torch.zeros_like(chain.table))
    texts = [RIGHT] * 12 + [WRONG] * 3
    a, b = (lambada(model, tokenizer, texts) for model in (chain, ignorant))
    found = compare_lambada(a, b)
    assert found.accuracy.diff.value == pytest.approx(12 / 15)
    assert found.accuracy.p == pytest.approx(2 / 2**12)
    assert found.accuracy.shown
    assert found.nll.diff.value < 0
    assert found.nll.shown
    report = found.to_json()
    assert (report["a"], report["b"], report["accuracy_p"]) == ("chain", "ignorant", found.accuracy.p)
    assert not compare_lambada(a, a).accuracy.shown


def test_texts_split_at_their_last_space() -> None:
    assert split_last_word("one two three") == ("one two", " three")
    assert split_last_word("one  three") == ("one ", " three")


@pytest.mark.parametrize("text", ["word", "", " word", "word "])
def test_passages_without_context_or_word_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="two or more words"):
        split_last_word(text)


def test_no_passages_are_refused(chain: Any, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="no passages"):
        lambada(chain, tokenizer, [])


def test_model_that_breaks_down_is_named(chain: Any, tokenizer: Any) -> None:
    chain.table[tokenizer.encode("b")[0]] = math.nan
    with pytest.raises(CheckFailed, match=r"chain was .* passage 1"):
        lambada(chain, tokenizer, [RIGHT, WRONG])


def test_file_is_read_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "passages.jsonl"
    # A line separator inside a text (U+2028) is legal in JSON and does not end the line.
    file.write_text('{"text": "one\u2028two three"}\n\n{"text": "four five", "more": 1}\n', encoding="utf-8")
    assert load_lambada(file) == ("one\u2028two three", "four five")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no passage"),
        ('{"text": "a b"}\nplain text\n', ":2 should be"),
        ('{"passage": "a b"}\n', ":1 should be"),
        ('["a b"]\n', ":1 should be"),
        ('{"text": 3}\n', "should be a string"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "passages.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        load_lambada(file)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl, found: .*No such file"):
        load_lambada(tmp_path / "absent.jsonl")
