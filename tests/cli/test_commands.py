"""Every command on the embedded model: one small quantised folder, made once, that all tests use."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import ssmquant
from ssmquant import loading
from ssmquant.cli import demo as demo_module
from ssmquant.data import builtin_model
from ssmquant.runtime.sampling import Sampling

FLOAT = builtin_model()
RECIPE = "quamba2-w8a8"
SMALL = ("--samples", 2, "--seqlen", 32)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of calibration statistics, in place of the user's."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("SSMQUANT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def made(run: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder, and what `quantize` said."""
    out = tmp_path_factory.mktemp("made") / "quantised"
    return SimpleNamespace(out=out, outcome=run("quantize", FLOAT, "-r", RECIPE, "-o", out, *SMALL))


@pytest.fixture(scope="module")
def out(made: Any) -> Path:
    """A quantised folder."""
    folder: Path = made.out
    return folder


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def test_plan_shows_sites_and_bytes_and_reads_no_weights(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_alone = tmp_path / "model"
    config_alone.mkdir()
    shutil.copy(FLOAT / "config.json", config_alone)
    outcome = run("plan", config_alone, "--recipe", RECIPE, "--json", tmp_path / "plan.json")
    plan = ssmquant.plan(FLOAT, RECIPE)
    assert outcome.status == 0
    assert _read(tmp_path / "plan.json") == plan.to_json()
    lines = outcome.stdout.splitlines()
    (row,) = [line for line in lines if "layers.0-7.x " in line]
    assert "int8 per-head-group 4x4" in row
    assert lines[-2] == "weights at rest: 15.3 MB in 16 bits → 7.79 MB (51%)"
    assert lines[-1].startswith("sites: 26 × int8 per-channel, ")


def test_recipes_lists_names_and_options(run: Any) -> None:
    outcome = run("recipes")
    for name in ssmquant.shipped_recipes():
        assert f" {name} " in outcome.stdout
    assert "+ssm_state=int8|float32|float16: " in outcome.stdout


def test_quantize_writes_a_folder_and_says_what_it_did(made: Any) -> None:
    assert made.outcome.status == 0
    first, _, written, seconds = made.outcome.stdout.splitlines()
    assert first == "weights at rest: 15.3 MB in 16 bits → 7.79 MB (51%)"
    assert written.startswith(f"written: {made.out} (9.")
    steps = [part.removeprefix("time:").rsplit(maxsplit=2)[0].strip() for part in seconds.split(",")]
    assert steps == ["load", "calibrate", "quantise weights", "quantise", "save"]


def test_quantize_refuses_before_any_work(run: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(loading, "load", load)
    outcome = run("quantize", FLOAT, "-r", RECIPE, "-o", out, *SMALL)
    assert outcome.status == 2
    assert f"{out} already exists" in outcome.stderr
    assert "--force" in outcome.stderr
    assert run("quantize", FLOAT, "-r", "quamba", "-o", out.parent / "new").status == 2
    assert not (out.parent / "new").exists()


def test_a_budget_is_an_option_of_the_recipe(run: Any, tmp_path: Path) -> None:
    asked = {
        "w4ax+budget=4.5bits": ["w4ax", "--budget", "4.5bits"],
        "w4ax+budget=7.25mb": ["w4ax", "--budget-mb", "7.25"],
        "w4ax+float_share=0%+budget=4.5bits": ["w4ax+float_share=0%", "--budget", "4.5bits"],
    }
    for reference, words in asked.items():
        outcome = run("plan", FLOAT, "-r", *words, "--json", tmp_path / "plan.json")
        assert outcome.status == 0
        assert _read(tmp_path / "plan.json") == ssmquant.plan(FLOAT, reference).to_json()
        left = outcome.stdout.splitlines()[-1]
        assert left.startswith(
            f"to be chosen by measurement, within {reference.rpartition('=')[2]}: int4 per-group 128"
        )
        assert "for 16 weights" in left


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["w4ax", "--budget", "4.5bits", "--budget-mb", "7"], "choose --budget or --budget-mb"),
        (
            ["w4ax", "--budget", "4bits"],
            "a budget of 4bits cannot be reached; the smallest that can is 4.250bits",
        ),
        (["w4ax", "--budget-mb", "1"], "a budget of 1.0mb cannot be reached"),
        (["w4ax", "--budget", "small"], "budget='small' is not bits a weight or megabytes of the model"),
        (["fp16", "--budget", "5bits"], "recipe 'fp16' has no option 'budget'"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_before_any_work(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.setattr(loading, "load", None)
    for command in (["plan", FLOAT], ["quantize", FLOAT, "-o", tmp_path / "out"]):
        outcome = run(*command, "-r", *words)
        assert outcome.status == 2
        assert message in " ".join(outcome.stderr.split())


def test_quantize_says_what_was_chosen(run: Any, tmp_path: Path) -> None:
    outcome = run("quantize", FLOAT, "-r", "w4ax", "--budget", "6bits", "-o", tmp_path / "out", *SMALL)
    assert outcome.status == 0
    line = outcome.stdout.splitlines()[2]
    assert (
        line.startswith("chosen by measurement, within 6bits: 5.")
        and "bits a weight, float activations for" in line
    )
    plan = _read(tmp_path / "out" / "config.json")["quantization_config"]["plan"]
    assert plan["recipe"] == "w4ax+budget=6bits"
    assert plan["allocation"]["bits"] <= 6
    assert len(plan["allocation"]["divergence"]) == 16 + 8


def test_quantize_force_replaces(run: Any, out: Path, cache: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    cached = sorted(cache.rglob("*"))
    outcome = run("quantize", FLOAT, "-r", "w8a8-naive", "-o", copy, *SMALL, "--no-cache", "--force")
    assert outcome.status == 0
    assert _read(copy / "config.json")["quantization_config"]["plan"]["recipe"] == "w8a8-naive"
    assert cached
    assert sorted(cache.rglob("*")) == cached


def test_inspect_shows_what_is_stored(run: Any, out: Path, tmp_path: Path) -> None:
    outcome = run("inspect", out, "--json", tmp_path / "found.json")
    assert outcome.status == 0
    found = _read(tmp_path / "found.json")
    tensors = load_file(out / "model.safetensors").values()
    int8 = [tensor for tensor in tensors if tensor.dtype == torch.int8]
    assert found["tensors"]["int8"] == {
        "tensors": len(int8),
        "elements": sum(tensor.numel() for tensor in int8),
        "bytes": sum(tensor.nbytes for tensor in int8),
    }
    assert sum(row["bytes"] for row in found["tensors"].values()) == sum(tensor.nbytes for tensor in tensors)
    assert found["provenance"]["samples"] == 2
    assert found["plan"]["recipe"] == RECIPE
    # int8 states of 8 layers, each 16 heads × 32 headdim × 64 d_state, and more (scales, conv inputs, error feedback).
    assert found["state_bytes"] >= 8 * 16 * 32 * 64
    assert "layers.0-7.x " in outcome.stdout
    assert "samples: 2" in outcome.stdout


def test_inspect_takes_float_models(run: Any, tmp_path: Path) -> None:
    assert run("inspect", FLOAT, "--json", tmp_path / "found.json").status == 0
    found = _read(tmp_path / "found.json")
    assert list(found["tensors"]) == ["bfloat16"]
    assert found["plan"] is None


def test_verify_passes_and_fails(run: Any, out: Path, tmp_path: Path) -> None:
    assert run("verify", out).status == 0

    damaged = tmp_path / "damaged"
    shutil.copytree(out, damaged)
    tensors = load_file(damaged / "model.safetensors")
    name = next(name for name in tensors if tensors[name].dtype == torch.int8)
    tensors[name].flatten()[0] ^= 1
    save_file(tensors, damaged / "model.safetensors", metadata={"format": "pt"})
    outcome = run("verify", damaged)
    assert outcome.status == 1
    assert name in outcome.stdout
    assert outcome.stderr.startswith(f"error: {damaged} did not pass")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what there is without a GPU")
def test_tune_needs_a_gpu(run: Any, out: Path) -> None:
    outcome = run("tune", out)
    assert outcome.status == 2
    assert "NVIDIA GPU" in outcome.stderr


def test_verify_of_a_float_model_is_bad_input(run: Any) -> None:
    outcome = run("verify", FLOAT)
    assert outcome.status == 2
    assert "was not quantised by ssmquant" in outcome.stderr


def test_eval_against_the_float_model(run: Any, out: Path, tmp_path: Path) -> None:
    outcome = run("eval", out, "--against", FLOAT, *SMALL, "--json", tmp_path / "eval.json")
    assert outcome.status == 0
    found = _read(tmp_path / "eval.json")
    assert (found["model"], found["against"]) == (str(out), str(FLOAT))
    assert list(found["domains"]) == ["en", "zh", "code"]
    for scores in found["domains"].values():
        assert scores["tokens"] == 2 * 31
        assert 0 < scores["kl"] < 0.2
        assert 0.7 < scores["top1"] <= 1
    assert {"machine", "torch", "ssmquant"} <= found["environment"].keys()
    assert f"against {FLOAT}" in outcome.stdout


def test_eval_of_several_models_compares_them(run: Any, out: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    passages = tmp_path / "passages.jsonl"
    passages.write_text(
        '{"text": "the cat sat on the mat"}\n{"text": "one two three"}\n{"text": "not read"}\n'
    )
    outcome = run(
        "eval", out, copy, "--against", FLOAT, "--data", "builtin:en", *SMALL,
        "--lambada", passages, "--limit", 2, "--json", tmp_path / "eval.json",
    )  # fmt: skip
    assert outcome.status == 0
    found = _read(tmp_path / "eval.json")
    assert [model["model"] for model in found["models"]] == [str(out), str(copy)]
    assert [(pair["domain"], pair["kl_diff"], pair["p"]) for pair in found["paired"]] == [("en", 0.0, 1.0)]
    assert [scores["passages"] for scores in found["lambada"]["models"]] == [2, 2]
    assert found["lambada"]["paired"][0]["nll_diff"] == 0.0
    assert "LAMBADA" in outcome.stdout


def test_eval_without_reference_gives_perplexity(run: Any, tmp_path: Path) -> None:
    text = tmp_path / "mine.jsonl"
    text.write_text('{"text": "%s"}\n' % ("the cat sat on the mat and " * 20), encoding="utf-8")
    outcome = run(
        "eval", FLOAT, "--data", text, "--samples", 1, "--seqlen", 32, "--json", tmp_path / "eval.json"
    )
    assert outcome.status == 0
    (scores,) = _read(tmp_path / "eval.json")["domains"].values()
    assert scores["ppl"] > 1
    assert scores["kl"] is None


def test_eval_tasks_alone_reads_no_text(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def run_tasks(model: Any, tasks: list[str], **options: Any) -> dict[str, Any]:
        asked.update(model=model.name, tasks=tasks, **options)
        return {"results": {"piqa": {"alias": "piqa", "acc,none": 0.625, "acc_stderr,none": 0.0123}}}

    monkeypatch.setitem(sys.modules, "ssmquant.integrations.lm_eval", SimpleNamespace(run_tasks=run_tasks))
    outcome = run(
        "eval",
        FLOAT,
        "--tasks",
        "piqa,arc",
        "--task-path",
        tmp_path,
        "--limit",
        5,
        "--json",
        tmp_path / "e.json",
    )
    assert outcome.status == 0
    assert asked == {
        "model": str(FLOAT),
        "tasks": ["piqa", "arc"],
        "include_path": tmp_path,
        "limit": 5,
        "batch_size": 4,
    }
    (row,) = [line for line in outcome.stdout.splitlines() if "piqa" in line]
    assert row.split()[1:] == ["piqa", "acc", "0.6250", "0.0123"]
    found = _read(tmp_path / "e.json")
    assert found["domains"] == {}
    assert found["tasks"][str(FLOAT)]["results"]["piqa"]["acc,none"] == 0.625


def _expected(out: Path, prompts: list[str], tokens: int, **options: Any) -> list[str]:
    return ssmquant.load(str(out)).generate(prompts, max_new_tokens=tokens, **options)


def test_generate_streams_one_text(run: Any, out: Path, tmp_path: Path) -> None:
    (text,) = _expected(out, ["中国的"], 12)
    outcome = run(
        "generate",
        out,
        "--prompt",
        "-",
        "--max-new-tokens",
        12,
        "--json",
        tmp_path / "t.json",
        stdin="中国的",
    )
    assert outcome.status == 0
    assert outcome.stdout == f"中国的{text}\n"
    (row,) = _read(tmp_path / "t.json")["generations"]
    assert (row["prompt"], row["text"], row["finish_reason"]) == ("中国的", text, "length")
    assert len(row["token_ids"]) == 12


def test_generate_takes_several_prompts_and_all_options(run: Any, out: Path) -> None:
    prompts = ["The history", "def main"]
    sampling = Sampling(0.9, top_k=30, top_p=0.9, repetition_penalty=1.1, seed=7)
    options = [
        word for name, value in vars(sampling).items() for word in (f"--{name.replace('_', '-')}", value)
    ]
    texts = _expected(out, prompts, 8, stop=["e "], **vars(sampling))
    outcome = run(
        "generate",
        out,
        "--prompt",
        prompts[0],
        "--prompt",
        prompts[1],
        "--max-new-tokens",
        8,
        "--stop",
        "e ",
        *options,
    )
    assert outcome.stdout == "".join(f"{p}{t}\n" for p, t in zip(prompts, texts, strict=True))
    assert texts != _expected(out, prompts, 8)


def test_chat_continues_the_text_so_far(run: Any, out: Path) -> None:
    options = ["--max-new-tokens", 6, "--temperature", 0, "--repetition-penalty", 1]
    outcome = run("chat", out, *options, stdin="The history\n and then\n\nOnce\n")
    (first,) = _expected(out, ["The history"], 6)
    (second,) = _expected(out, [f"The history{first} and then"], 6)
    (third,) = _expected(out, ["Once"], 6)
    assert outcome.status == 0
    assert outcome.stdout == f"> {first}\n> {second}\n> > {third}\n> \n"
    assert "base models do not answer" in outcome.stderr


def test_demo_does_the_whole_job(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "_CALIBRATION_SAMPLES", 2)
    monkeypatch.setattr(demo_module, "_CALIBRATION_TOKENS", 32)
    monkeypatch.setattr(demo_module, "_NEW_TOKENS", 4)
    out = tmp_path / "a demo"
    outcome = run("demo", "--out", out, *SMALL)
    assert outcome.status == 0
    assert ssmquant.verify(out).ok
    steps = [line for line in outcome.stdout.splitlines() if line.startswith("• ")]
    assert len(steps) == 6
    assert outcome.stdout.count("quantised: ") == outcome.stdout.count("float: ") == 3
    assert f"ssmquant inspect '{out}'" in outcome.stdout
    again = run("demo", "--out", out, *SMALL)
    assert again.status == 2
    assert "already exists" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["plan", "no/such/model", "-r", RECIPE], ["'no/such/model'", "pass"]),
        (["plan", FLOAT, "-r", "quamba-w8a9"], ["'quamba-w8a9'", "did you mean 'quamba-w8a8'?"]),
        (["plan", FLOAT, "-r", f"{RECIPE}+state=int8"], ["no option 'state'", "ssm_state"]),
        (["plan", FLOAT, "-r", RECIPE, "--json", "/no/such/folder/x.json"], ["no folder", "make it first"]),
        (["quantize", FLOAT, "-r", RECIPE, "-o", "{tmp}/q", "--calib", "no.jsonl"], ["no.jsonl", "builtin"]),
        (["quantize", FLOAT, "-r", RECIPE, "-o", "{tmp}/q", "--samples", 0], ["--samples"]),
        (["eval", FLOAT, "--samples", 99999], ["99", "en of builtin"]),
        (["eval", FLOAT, FLOAT], ["two models are called"]),
        (["eval", FLOAT, "--against", FLOAT, "--lambada", "x.jsonl"], ["--against", "add --data"]),
        (["generate", FLOAT, "--prompt", "-", "--prompt", "-"], ["given twice", "give it once"]),
        (["generate", FLOAT, "--prompt", "x", "--top-p", "1.5"], ["top_p=1.5", "at most 1"]),
        (["generate", FLOAT, "--prompt", "x", "--max-new-tokens", 0], ["max_new_tokens=0", "at least 1"]),
        (["inspect", "{tmp}"], ["empty", "config.json"]),
    ],
)
def test_bad_input_is_named(run: Any, tmp_path: Path, arguments: list[Any], fragments: list[str]) -> None:
    outcome = run(*(str(word).replace("{tmp}", str(tmp_path)) for word in arguments))
    message = " ".join(outcome.stderr.replace("│", " ").split())
    assert outcome.status == 2, outcome
    assert not [fragment for fragment in fragments if fragment not in message], outcome
    assert list(tmp_path.iterdir()) == []


def test_models_without_tokenizer_are_named(run: Any, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(FLOAT / name)
    for command in (["generate", tmp_path, "--prompt", "x"], ["eval", tmp_path, *SMALL]):
        outcome = run(*command)
        assert outcome.status == 2
        assert f"{tmp_path}, which has no tokenizer; copy tokenizer.json" in outcome.stderr
