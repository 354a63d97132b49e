"""lm-evaluation-harness over local task files and local text; nothing is fetched."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="the extra ssmquant[tasks]")

from ssmquant.errors import DataError, InputError, ModelError
from ssmquant.eval.continuations import encode_pair
from ssmquant.eval.lambada import lambada
from ssmquant.integrations import lm_eval as integration
from ssmquant.integrations.lm_eval import SsmquantLM, run_tasks

# The chain continues "," with " ca,": the first choice of each question, except where the answer says otherwise.
CHOICES = [
    {"question": "the ca,", "choices": [" ca,", " cb,"], "answer": 0},
    {"question": "ca, ca,", "choices": [" xa,", " ca,"], "answer": 1},
    {"question": "the ca,", "choices": [" ca,", " zz,"], "answer": 1},
    {"question": "e ca,", "choices": ["!", " "], "answer": 1},
]
PROMPTS = [
    {"question": "the", "answer": " ca"},  # up to the stop string ","
    {"question": "ca, t", "answer": "he ca"},
    {"question": "ca,", "answer": "nothing of the kind"},
]
PASSAGES = [{"text": text} for text in ("the ca, ca,", "the ca, cb,", "e ca, ca,")]

TASKS = {
    "toy_choice": """
        output_type: multiple_choice
        doc_to_text: "{{question}}"
        doc_to_choice: choices
        doc_to_target: answer
        target_delimiter: ""
        metric_list:
          - {metric: acc}
    """,
    "toy_generate": """
        output_type: generate_until
        doc_to_text: "{{question}}"
        doc_to_target: "{{answer}}"
        generation_kwargs: {until: [","], max_gen_toks: 12, do_sample: false}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}
    """,
    "toy_lambada": """
        output_type: loglikelihood
        doc_to_text: "{{text.split(' ')[:-1]|join(' ')}}"
        doc_to_target: "{{' '+text.split(' ')[-1]}}"
        target_delimiter: ""
        metric_list:
          - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
          - {metric: acc, aggregation: mean, higher_is_better: true}
    """,
    "toy_rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list:
          - {metric: byte_perplexity}
    """,
}
TEXTS = {"toy_choice": CHOICES, "toy_generate": PROMPTS, "toy_lambada": PASSAGES, "toy_rolling": PASSAGES}


def task_folder(root: Path) -> Path:
    """Write the task files and their text."""
    folder = root / "tasks"
    folder.mkdir()
    for name, body in TASKS.items():
        data = root / f"{name}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in TEXTS[name]))
        head = f"""
        task: {name}
        dataset_path: json
        dataset_kwargs: {{data_files: {{test: "{data}"}}, cache_dir: "{root / "cache"}"}}
        test_split: test"""
        (folder / f"{name}.yaml").write_text(_dedent(head + body))
    return folder


def _dedent(text: str) -> str:
    return "\n".join(line.removeprefix("        ") for line in text.splitlines()).strip() + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return task_folder(tmp_path)


def request(*arguments: Any) -> Any:
    """What the harness hands over, as far as models look at it."""
    return SimpleNamespace(args=arguments)


# The harness forks for its bootstrap, of which Python 3.12 and later warn.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_tasks_give_the_numbers_worked_out_by_hand(
    chain: Any, tokenizer: Any, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_tasks(chain, list(TASKS), include_path=folder)
    results = found["results"]
    assert results["toy_choice"]["acc,none"] == 3 / 4
    assert results["toy_generate"]["exact_match,none"] == pytest.approx(2 / 3)
    assert found["n-samples"]["toy_choice"] == {"original": 4, "effective": 4}

    ours = lambada(chain, tokenizer, [passage["text"] for passage in PASSAGES])
    assert results["toy_lambada"]["acc,none"] == pytest.approx(ours.accuracy.value) == pytest.approx(2 / 3)
    assert results["toy_lambada"]["perplexity,none"] == pytest.approx(ours.ppl.value)

    size = len(tokenizer)
    table = chain.table.double().log_softmax(-1)
    nll = 0.0
    for passage in PASSAGES:
        ids = [size - 1, *tokenizer.encode(passage["text"])]  # the end-of-text token stands first
        nll -= float(table[ids[:-1], ids[1:]].sum())
    characters = sum(len(passage["text"]) for passage in PASSAGES)
    assert results["toy_rolling"]["byte_perplexity,none"] == pytest.approx(math.exp(nll / characters))

    json.dumps(found)  # plain data
    assert capsys.readouterr().out == ""


def test_limit_takes_the_first_items(chain: Any, folder: Path) -> None:
    found = run_tasks(chain, ["toy_choice"], include_path=folder, limit=2)
    assert found["results"]["toy_choice"]["acc,none"] == 1.0
    assert found["n-samples"]["toy_choice"]["effective"] == 2


def test_unknown_task_is_refused_with_the_nearest(
    chain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The harness's own 14,000 tasks take ten seconds to read.
    manager = integration.TaskManager
    monkeypatch.setattr(
        integration,
        "TaskManager",
        lambda include_path, **_: manager(None, include_path, include_defaults=False),
    )
    with pytest.raises(
        InputError, match="'toy_chioce' is none of the 4 known tasks; did you mean 'toy_choice'"
    ):
        run_tasks(chain, ["toy_choice", "toy_chioce"], include_path=folder)


def test_tasks_of_the_harness_are_not_read_without_need(
    chain: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bool] = []

    def manager(*, include_path: str, include_defaults: bool = True) -> Any:
        read.append(include_defaults)
        return original(include_path=include_path, include_defaults=False)

    original = integration.TaskManager
    monkeypatch.setattr(integration, "TaskManager", manager)
    run_tasks(chain, ["toy_choice"], include_path=folder, limit=1)
    assert read == [False]


def test_no_task_and_no_folder_are_refused(chain: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least one name"):
        run_tasks(chain, [])
    with pytest.raises(InputError, match=r"absent was named and is not there"):
        run_tasks(chain, ["toy_choice"], include_path=tmp_path / "absent")


def test_missing_text_is_said(chain: Any, folder: Path) -> None:
    (folder.parent / "toy_choice.jsonl").unlink()
    with pytest.raises(DataError, match=r"tasks toy_choice were asked for and their text was not found"):
        run_tasks(chain, ["toy_choice"], include_path=folder)


def test_harness_knows_the_model_by_name() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("ssmquant") is SsmquantLM


def test_context_beyond_the_longest_input_is_cut_on_the_left(
    make_bigram: Callable[..., Any], chain: Any
) -> None:
    lm = SsmquantLM(chain, max_length=4)
    ((cut, greedy),) = lm.loglikelihood([request("the ca, ca,", " ca")])
    assert chain.batches == [(1, 4)]
    assert greedy
    chain.batches.clear()
    ((whole, _),) = SsmquantLM(chain).loglikelihood([request("the ca, ca,", " ca")])
    assert chain.batches == [(1, 13)]
    assert whole == cut  # a bigram model does not miss the context


def test_rolling_windows_count_every_token_once(chain: Any, tokenizer: Any) -> None:
    text = "the ca, ca, cb, zz, the ca,"
    (expected,) = SsmquantLM(chain).loglikelihood_rolling([request(text)])
    (found,) = SsmquantLM(chain, max_length=5).loglikelihood_rolling([request(text)])
    assert found == pytest.approx(expected, rel=1e-12)
    assert max(shape[1] for shape in chain.batches[1:]) == 5


@pytest.mark.parametrize(
    ("context", "target"), [("the ca,", " xy"), ("the ca,  ", "xyz"), ("x\n", " y"), ("the x", "yz")]
)
def test_lambada_splits_into_tokens_as_the_harness_does(
    chain: Any, tokenizer: Any, context: str, target: str
) -> None:
    theirs = SsmquantLM(chain)._encode_pair(context, target)
    assert tuple(map(tuple, theirs)) == encode_pair(tokenizer, context, target)


def test_empty_context_starts_at_the_end_of_text_token(chain: Any, tokenizer: Any) -> None:
    ((logprob, _),) = SsmquantLM(chain).loglikelihood([request("", "th")])
    table = chain.table.double().log_softmax(-1)
    t, h = tokenizer.encode("th")
    assert logprob == pytest.approx(float(table[tokenizer.eos_token_id, t] + table[t, h]))


def test_generation_is_batched_by_options_and_kept_in_order(chain: Any) -> None:
    lm = SsmquantLM(chain, batch_size=2)
    comma, short = {"until": [","], "max_gen_toks": 9}, {"until": [], "max_gen_toks": 2}
    requests = [
        request("the", comma),
        request("t", short),
        request("ca, t", comma),
        request("h", short),
        request("ca", comma),
    ]
    assert lm.generate_until(requests) == [" ca", "he", "he ca", "e ", ""]
    assert sorted(chain.prompts) == [["ca"], ["t", "h"], ["the", "ca, t"]]
    assert requests[0].args[1] == {"until": [","], "max_gen_toks": 9}  # the harness's own stays as it was


def test_sampling_options_reach_the_model(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def generate(prompt: list[str], **options: Any) -> list[str]:
        seen.update(options)
        return [""] * len(prompt)

    monkeypatch.setattr(chain, "generate", generate)
    options = {"until": "\n", "max_new_tokens": 5, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
    SsmquantLM(chain).generate_until([request("the", options)])
    assert seen == {"max_new_tokens": 5, "temperature": 0.7, "top_p": 0.9, "stop": ["\n", "<end>"]}


def test_generation_option_that_we_lack_is_refused(chain: Any) -> None:
    with pytest.raises(
        InputError, match=r"'num_beams'; known: repetition_penalty, temperature, top_k, top_p"
    ):
        SsmquantLM(chain).generate_until([request("the", {"until": [","], "num_beams": 4})])


def test_model_without_tokenizer_is_refused(make_bigram: Callable[..., Any], tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="bare, which lacks a tokenizer"):
        SsmquantLM(make_bigram("bare", torch.zeros(2, 2)))
    endless = SimpleNamespace(eos_token_id=None)
    with pytest.raises(ModelError, match="endless, which lacks an end-of-text token"):
        SsmquantLM(make_bigram("endless", torch.zeros(2, 2), endless))


@pytest.mark.parametrize("batch_size", ["auto", 0, "-1"])
def test_batch_size_that_is_no_number_is_refused(chain: Any, batch_size: int | str) -> None:
    with pytest.raises(InputError, match="batch size"):
        SsmquantLM(chain, batch_size=batch_size)


def test_without_the_extra_the_import_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    spec = importlib.util.spec_from_file_location("without_the_extra", integration.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(InputError, match=r"'lm_eval' is not installed; run: pip install 'ssmquant\[tasks\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
