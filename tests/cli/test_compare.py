"""`ssmquant compare` on the embedded model, timing left out (the ratios are given)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssmquant import loading
from ssmquant.data import builtin_model
from ssmquant.errors import InputError
from ssmquant.report import compare as module
from ssmquant.report.timing import Relative

FLOAT = builtin_model()
SMALL = (
    "--samples",
    2,
    "--seqlen",
    24,
    "--calib-samples",
    2,
    "--calib-seqlen",
    32,
    "--data",
    "builtin:en,zh",
)
RECIPES = ("--recipes", "quamba2-w8a8+ssm_state=float32, fp16")


@pytest.fixture(autouse=True)
def given_times(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("SSMQUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(
        module, "relative_times", lambda *_: (Relative(1.0, 1.25, 1.5), Relative(2.0, 2.5, 3.0))
    )


def test_one_run_gives_one_table_one_json_file_and_one_page(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, file = tmp_path / "report", tmp_path / "result.json"
    outcome = run("compare", FLOAT, *RECIPES, *SMALL, "-o", report, "--json", file)
    assert outcome.status == 0, outcome
    (best, worse) = [line.split() for line in outcome.stdout.splitlines() if "1.25" in line]
    assert best[0] == "fp16"
    assert worse[0].startswith("quamba2-w8a8+")  # a long name is folded
    assert "runs stage by stage" in " ".join(outcome.stdout.split())
    result = json.loads(file.read_text(encoding="utf-8"))
    assert [row["recipe"] for row in result["rows"]] == ["quamba2-w8a8+ssm_state=float32", "fp16"]
    assert result["rows"][0]["domains"].keys() == {"en", "zh"}
    assert result["rows"][0]["decode_rel"] == 2.5
    assert result["model"] == str(FLOAT)
    assert json.loads((report / "compare.json").read_text(encoding="utf-8")) == result
    assert "quamba2-w8a8+ssm_state=float32" in (report / "index.html").read_text(encoding="utf-8")
    assert len(list((report / "rows").iterdir())) == 2

    monkeypatch.setattr(module, "quantize", lambda *_, **__: 1 / 0)
    again = run("compare", FLOAT, *RECIPES, *SMALL, "-o", report, "--json", file)
    assert again.stdout == outcome.stdout
    assert json.loads(file.read_text(encoding="utf-8"))["rows"] == result["rows"]


@pytest.mark.parametrize(
    ("options", "executor", "workers"),
    [((), "Serial", None), (("--jobs", 1), "Serial", None), (("--jobs", 3), "Processes", 3)],
)
def test_jobs_are_processes(
    run: Any,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    executor: str,
    workers: int | None,
) -> None:
    found: list[Any] = []

    def recorded(*_: object, **options: object) -> None:
        found.append(options["executor"])
        raise InputError("enough")

    monkeypatch.setattr(module, "compare", recorded)
    assert "enough" in run("compare", FLOAT, "--recipes", "fp16", *SMALL, *options).stderr
    (chosen,) = found
    assert type(chosen).__name__ == executor
    assert workers is None or chosen.jobs == workers


def test_without_a_folder_nothing_is_kept(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = run("compare", FLOAT, "--recipes", "fp16", *SMALL)
    assert outcome.status == 0, outcome
    assert "differences" not in outcome.stdout  # there is no pair
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipes", "fp16,fp61"), "did you mean 'fp16'?"),
        (("--recipes", " , "), "none was given"),
        (("--recipes", "fp16,fp16"), "given twice"),
        (("--recipes", "fp16", "--jobs", "2", "--ray", "auto"), "choose one"),
        (("--recipes", "fp16", "-o", "{file}"), "found a file"),
        (("--recipes", "fp16", "-o", "{folder}"), "other things"),
        (("--recipes", "fp16", "--json", "{folder}"), "is a folder"),
        (("--recipes", "fp16", "--json", "{folder}/missing/x.json"), "make it first"),
    ],
)
def test_bad_input_is_refused_before_the_weights_are_read(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setattr(loading, "read_tensors", lambda *_, **__: pytest.fail("weights were read"))
    places = {"file": tmp_path / "file", "folder": tmp_path}
    outcome = run("compare", FLOAT, *SMALL, *(argument.format(**places) for argument in arguments))
    assert outcome.status == 2
    assert message in outcome.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_too_little_text_is_refused_before_anything_is_quantised(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "quantize", lambda *_, **__: pytest.fail("quantised"))
    outcome = run("compare", FLOAT, "--recipes", "fp16", "--samples", 9999, "-o", tmp_path / "report")
    assert outcome.status == 2
    assert "9999" in outcome.stderr.replace(",", "")
    assert list(tmp_path.iterdir()) == []
