"""Text and windows: what a spec names, how documents are cut, and what is refused with which words."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ssmquant.data import (
    DOMAINS,
    asset,
    calibration_windows,
    evaluation_documents,
    load_documents,
    windows,
)
from ssmquant.data.windows import _shares
from ssmquant.errors import DataError

END = 100  # the end-of-text token of the tokenizer below
RUN = 13  # words or characters in a row that count as the same passage
WORDS = re.compile(r"[a-z0-9]+|[\u4e00-\u9fff]")

Write = Callable[..., str]


@pytest.fixture(scope="module")
def numbers() -> PreTrainedTokenizerFast:
    """A tokenizer of whole numbers below 100: "7 8" is [7, 8], so that expected windows can be written down."""
    vocabulary = {str(number): number for number in range(100)} | {"<end>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")


@pytest.fixture(scope="module")
def embedded_tokenizer(embedded_model: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(embedded_model)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write texts as a .jsonl file and return its path."""

    def write(name: str, *texts: str) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return str(path)

    return write


# Windows of evaluation text


def test_windows_are_the_first_tokens_of_long_texts_in_order(numbers: PreTrainedTokenizerFast) -> None:
    texts = ("1 2 3 4 5", "6 7", "8 9 10", "11 12 13 14 15 16")
    found = windows(texts, numbers, seqlen=3, samples=2, source="t")
    assert found.dtype == torch.int64
    assert found.tolist() == [[1, 2, 3], [8, 9, 10]]
    everything = windows(texts, numbers, seqlen=3, samples=None, source="t")
    assert everything.tolist() == [[1, 2, 3], [8, 9, 10], [11, 12, 13]]


def test_a_single_text_is_cut_into_consecutive_windows(numbers: PreTrainedTokenizerFast) -> None:
    found = windows(["1 2 3 4 5 6 7 8"], numbers, seqlen=3, samples=None, source="t")
    assert found.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_too_little_text_says_what_was_asked_and_found(numbers: PreTrainedTokenizerFast) -> None:
    with pytest.raises(
        DataError, match=r"novel: asked for 3 windows of 4 tokens, found 1 \(the longest .* 5\)"
    ):
        windows(["1 2 3 4 5", "6 7"], numbers, seqlen=4, samples=3, source="novel")
    with pytest.raises(DataError, match="novel: asked for any windows of 6 tokens, found 0"):
        windows(["1 2 3 4 5", "6 7"], numbers, seqlen=6, samples=None, source="novel")


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"seqlen": 0}, {"samples": -1}])
def test_counts_below_one_are_refused(
    numbers: PreTrainedTokenizerFast, write: Write, wrong: dict[str, int]
) -> None:
    counts = {"samples": 1, "seqlen": 1} | wrong
    (name,) = wrong
    with pytest.raises(DataError, match=f"{name}={wrong[name]}: must be 1 or more"):
        windows(["1 2"], numbers, source="t", **counts)
    with pytest.raises(DataError, match=f"{name}={wrong[name]}: must be 1 or more"):
        calibration_windows(write("t.jsonl", "1 2"), numbers, **counts)


# Windows of calibration text


def test_short_texts_are_joined_with_the_end_token(numbers: PreTrainedTokenizerFast, write: Write) -> None:
    spec = write("t.jsonl", "1 2", "3", "4 5 6", "7 8 9 10 11 12", "13 14 15 16", "17")
    found = calibration_windows(spec, numbers, samples=3, seqlen=5)
    # The fourth text is long enough by itself; the fifth is one token short, which the end token fills.
    assert found.tolist() == [[1, 2, END, 3, END], [4, 5, 6, END, 7], [13, 14, 15, 16, END]]


def test_running_text_is_calibrated_on_window_by_window(
    numbers: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    path = tmp_path / "book.txt"
    path.write_text("1 2 3\n4 5 6 7")
    assert calibration_windows(str(path), numbers, samples=3, seqlen=2).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_domains_are_mixed_by_weight(numbers: PreTrainedTokenizerFast, write: Write) -> None:
    many = write("many.jsonl", *(["1 1"] * 9))
    few = write("few.jsonl", *(["2 2"] * 9))
    found = calibration_windows(f"{many}=7,{few}=3", numbers, samples=9, seqlen=2)
    assert found[:, 0].tolist() == [1] * 6 + [2] * 3  # 6.3 and 2.7
    equal = calibration_windows(f"{many},{few}", numbers, samples=5, seqlen=2)
    assert equal[:, 0].tolist() == [1] * 3 + [2] * 2


def test_a_share_of_nothing_takes_nothing(numbers: PreTrainedTokenizerFast, write: Write) -> None:
    spec = f"{write('a.jsonl', '1 1', '1 1')}=9,{write('b.jsonl', '2 2')}=1"
    assert calibration_windows(spec, numbers, samples=1, seqlen=2).tolist() == [[1, 1]]


def test_short_texts_need_an_end_token(numbers: PreTrainedTokenizerFast, write: Write) -> None:
    endless = PreTrainedTokenizerFast(tokenizer_object=numbers.backend_tokenizer)
    spec = write("t.jsonl", "1 2 3", "4 5")
    assert calibration_windows(spec, endless, samples=1, seqlen=3).tolist() == [[1, 2, 3]]
    with pytest.raises(DataError, match=r"one of 2 tokens is too short .* no end-of-text token"):
        calibration_windows(spec, endless, samples=2, seqlen=3)


@given(
    samples=st.integers(1, 2000),
    weights=st.lists(st.floats(0, 1e308, exclude_min=True), min_size=1, max_size=6),
)
def test_shares_add_up_and_are_within_one_of_exact(samples: int, weights: list[float]) -> None:
    shares = _shares(samples, weights)
    largest = max(weights)
    scaled = [weight / largest for weight in weights]
    assert sum(shares) == samples
    for share, weight in zip(shares, scaled, strict=True):
        assert abs(share - samples * weight / sum(scaled)) < 1 + 1e-9


# Specs and files


def test_builtin_domains_and_their_order() -> None:
    assert tuple(documents.name for documents in load_documents("builtin")) == DOMAINS
    assert [documents.name for documents in load_documents("builtin:code=0.2,en=2")] == ["code", "en"]
    assert evaluation_documents(None) == evaluation_documents("builtin")
    assert [documents.name for documents in evaluation_documents("builtin:zh")] == ["zh"]


def test_files_are_read_in_order_under_their_stems(write: Write, tmp_path: Path) -> None:
    first = write("first.jsonl", "a line\u2028separator", "b")
    second = tmp_path / "second=0.5,x.txt"  # a name that looks like a weight and another file
    second.write_text("\ufeffrunning\n\ntext")
    documents = evaluation_documents(first)
    assert documents == [("first", ("a line\u2028separator", "b"))]
    assert load_documents(str(second)) == [("second=0.5,x", ("running\n\ntext",))]
    both = load_documents(f"{first}=0.5,{write('third.jsonl', 'c')}=1e-3")
    assert [(domain.name, len(domain.texts)) for domain in both] == [("first", 2), ("third", 1)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.jsonl", r"missing\.jsonl: no such file; give FILE\.jsonl"),
        ("x" * 5000, "no such file"),
        ("builtin:cod", "no embedded text 'cod'; did you mean 'code'"),
        ("builtin:", "no embedded text ''; known: code, en, zh"),
        ("builtin:en=much", "the weight of 'en' is 'much'; give a number above 0"),
        ("builtin:en=0,zh=1", "the weight of 'en' is '0'"),
        ("builtin:en=-1,zh=1", "the weight of 'en' is '-1'"),
        ("builtin:en=nan", "the weight of 'en' is 'nan'"),
        ("builtin:en=inf", "the weight of 'en' is 'inf'"),
        ("builtin:en=0.5,zh", "some parts have a weight, some have none"),
        ("builtin:en,en", "'en' occurs twice"),
        ("a/t.jsonl,b/t.txt", "'t' occurs twice"),
    ],
)
def test_specs_that_cannot_be_meant(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_documents(spec)


def test_evaluation_takes_no_weights() -> None:
    with pytest.raises(DataError, match="'zh' has a weight; domains are evaluated one by one"):
        evaluation_documents("builtin:zh=0.5")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.jsonl", b"", "the file is empty"),
        ("t.txt", b"\xef\xbb\xbf \n\n", "the file is empty"),
        ("t.txt", b"caf\xe9 au lait", r"t\.txt: not UTF-8, byte 0xe9 at offset 3"),
        ("t.jsonl", b'{"text": "a"}\n\n{"text": "b"\n', r"t\.jsonl, line 3: not JSON"),
        ("t.jsonl", b"[" * 100_000, "line 1: not JSON"),
        ("t.jsonl", b'"text"', 'line 1: no string under "text"'),
        ("t.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', 'line 2: no string under "text"'),
        ("t.jsonl", b'{"text": ["a"]}\n', 'line 1: no string under "text"'),
        ("t.jsonl", b'{"text": "a"}\n{"text": " "}\n', 'line 2: "text" is empty; remove the line'),
        ("t.jsonl", b'{"text": "a\\ud800b"}\n', "line 1: .* half of a surrogate pair"),
        ("t.csv", b"text\n", r"t\.csv: cannot tell from its name .* \.jsonl or \.txt"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_documents(str(path))


def test_a_folder_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(DataError, match=r"folder\.txt: cannot be read \(Is a directory\)"):
        load_documents(str(tmp_path / "folder.txt"))


# Embedded files


def test_an_asset_that_is_not_there() -> None:
    with pytest.raises(DataError, match=r"asset 'text/none\.txt': not in this installation"):
        asset("text/none.txt")


@pytest.mark.parametrize("domain", DOMAINS)
def test_embedded_text_is_enough(domain: str, embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    (calibration,) = load_documents(f"builtin:{domain}")
    (evaluation,) = evaluation_documents(f"builtin:{domain}")
    assert len(windows(calibration.texts, embedded_tokenizer, seqlen=512, samples=None, source=domain)) >= 128
    assert len(windows(evaluation.texts, embedded_tokenizer, seqlen=1024, samples=None, source=domain)) >= 24


def test_default_calibration_mixes_all_embedded_domains(embedded_tokenizer: PreTrainedTokenizerBase) -> None:
    found = calibration_windows("builtin", embedded_tokenizer, samples=128, seqlen=512)
    first = [embedded_tokenizer(domain.texts[0])["input_ids"][:512] for domain in load_documents("builtin")]
    assert found.shape == (128, 512)
    assert [found[start].tolist() for start in (0, 43, 86)] == first  # shares of 43, 43 and 42


def passages(text: str) -> set[tuple[str, ...]]:
    words = WORDS.findall(text.lower())
    return {tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)}


def test_calibration_and_evaluation_text_are_disjoint() -> None:
    evaluated = {text for domain in evaluation_documents(None) for text in domain.texts}
    seen = {passage for text in evaluated for passage in passages(text)}
    assert len(evaluated) == sum(len(domain.texts) for domain in evaluation_documents(None))
    for domain in load_documents("builtin"):
        assert len(set(domain.texts)) == len(domain.texts)
        for text in domain.texts:
            found = passages(text)
            # Formulas of law and boilerplate recur; a document that repeats another does so far more.
            assert len(found & seen) <= 0.1 * len(found), text[:80]


@pytest.mark.parametrize("split", ["calib", "eval"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_every_embedded_document_names_its_source_and_a_free_licence(split: str, domain: str) -> None:
    lines = asset(f"text/{split}/{domain}.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    rows = [json.loads(line) for line in lines]
    table = asset("text/SOURCES.md").read_text(encoding="utf-8")
    free = ("public domain", "CC0-1.0", "MIT", "BSD-3-Clause", "Apache-2.0")
    for row in rows:
        assert set(row) == {"text", "source", "licence"}
        assert row["licence"].startswith(free)
        assert re.search(
            rf"^\| {re.escape(row['source'])} \| \w{{12}} \| {re.escape(row['licence'])} \|", table, re.M
        )
    most = Counter(row["source"] for row in rows).most_common(1)[0][1]
    assert most <= 0.7 * len(rows), "one source makes up nearly all of the domain"


def test_embedded_files_stay_small() -> None:
    size = sum(path.stat().st_size for path in asset(".").rglob("*") if path.is_file())
    assert size <= 25e6
