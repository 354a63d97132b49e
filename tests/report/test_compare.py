"""Comparing on the embedded model: what is measured, what is refused, and what a second run does not do again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ssmquant
from ssmquant.data import builtin_model, evaluation_documents, windows
from ssmquant.errors import InputError, ModelError, RecipeError
from ssmquant.eval.evaluate import evaluate
from ssmquant.model import Model
from ssmquant.report import compare as module
from ssmquant.report.compare import Calibration, compare
from ssmquant.report.executors import Processes, Serial
from ssmquant.report.store import RowStore
from ssmquant.report.timing import Workload

RECIPES = ["fp16", "w8a8-dynamic"]
CALIBRATION = Calibration(samples=2, seqlen=32)
WORKLOAD = Workload(prompt=4, steps=2, repetitions=2)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Model:
    return ssmquant.load(builtin_model())


@pytest.fixture(scope="module")
def domains(model: Model) -> dict[str, Tensor]:
    assert model.tokenizer is not None
    return {
        documents.name: windows(documents.texts, model.tokenizer, seqlen=24, samples=3, source=documents.name)
        for documents in evaluation_documents("builtin:en,code")
    }


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of statistics for these tests alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSMQUANT_CACHE", str(folder))
        yield folder


class Here(Serial):
    """Runs tasks here, and says that they have another number of threads if told to."""

    threads = 1


@pytest.fixture
def quantised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The recipes that were quantised, as it happens."""
    names: list[str] = []
    original = module.quantize

    def counting(model: Model, recipe: str, **options: object) -> Model:
        names.append(recipe)
        assert options["cache"] is False  # or nothing would count what comes from it
        return original(model, recipe, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "quantize", counting)
    return names


def test_scores_are_those_of_an_evaluation_of_all_together(model: Model, domains: dict[str, Tensor]) -> None:
    steps: list[str] = []
    comparison = compare(
        model, RECIPES, domains, CALIBRATION, workload=WORKLOAD, progress=lambda what, *_: steps.append(what)
    )
    candidates = []
    for recipe in RECIPES:
        candidate = ssmquant.quantize(model, recipe, samples=2, seqlen=32, cache=False)
        candidate.name = recipe
        candidates.append(candidate)
    together = evaluate(model, candidates, domains)
    for row, scores in zip(comparison.rows, together.models, strict=True):
        assert row.scores.to_json() == scores.to_json()
        assert row.calibration_s > 0
        assert 0 < row.prefill.p20 <= row.prefill.p50 <= row.prefill.p80
    assert [pair.to_json() for pair in comparison.paired] == [pair.to_json() for pair in together.paired]
    assert comparison.rows[0].kl.value < comparison.rows[1].kl.value
    assert "w8a8-dynamic: evaluate" in steps
    assert model.name == str(builtin_model())  # the float model keeps its name


def test_processes_give_the_rows_of_this_one(model: Model, domains: dict[str, Tensor], cache: Path) -> None:
    """What a row says of the model does not depend on where it was measured; statistics are gathered once for all."""
    recipes = ["w8a8-naive", "smoothquant"]
    steps: list[str] = []
    alone = compare(model, recipes, domains, CALIBRATION, workload=WORKLOAD)
    before = {file.name: file.stat().st_mtime_ns for file in (cache / "calibration").iterdir()}
    apart = compare(
        model,
        recipes,
        domains,
        CALIBRATION,
        workload=WORKLOAD,
        executor=Processes(2),
        progress=lambda what, *_: steps.append(what),
    )
    after = {file.name: file.stat().st_mtime_ns for file in (cache / "calibration").iterdir()}
    assert after == before != {}
    for there, here in zip(apart.rows, alone.rows, strict=True):
        assert there.scores.to_json() == here.scores.to_json()
        assert there.bytes_at_rest == here.bytes_at_rest
    assert {"w8a8-naive: evaluate", "smoothquant: evaluate"} <= set(steps)
    assert not any("calibrate" in step for step in steps)


def test_a_second_run_goes_on_where_the_first_stopped(
    model: Model,
    domains: dict[str, Tensor],
    tmp_path: Path,
    quantised: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = RowStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compare(model, RECIPES[:1], domains, CALIBRATION, workload=WORKLOAD, store=store)
    first = compare(model, RECIPES[:1], domains, CALIBRATION, workload=WORKLOAD, store=store)
    assert quantised == ["fp16", "fp16"]  # a row that was not finished was not kept
    both = compare(model, RECIPES, domains, CALIBRATION, workload=WORKLOAD, store=store)
    assert quantised[2:] == ["w8a8-dynamic"]
    assert both.rows[0].to_record() == first.rows[0].to_record()
    again = compare(model, RECIPES[::-1], domains, CALIBRATION, workload=WORKLOAD, store=store)
    assert quantised[3:] == []
    assert [row.to_record() for row in again.rows] == [row.to_record() for row in both.rows[::-1]]


@pytest.mark.parametrize("changed", ["weights", "text", "calibration", "workload", "version", "threads"])
def test_what_a_row_depends_on_has_it_measured_again(
    changed: str,
    model: Model,
    domains: dict[str, Tensor],
    tmp_path: Path,
    quantised: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = RowStore(tmp_path)
    compare(model, ["fp16"], domains, CALIBRATION, workload=WORKLOAD, store=store)
    calibration, workload, executor = CALIBRATION, WORKLOAD, Here()
    here = module.environment()
    match changed:
        case "weights":
            model = ssmquant.load(builtin_model())
            model.shell.final_norm.weight.data[0] *= 1.01
        case "text":
            domains = domains | {"en": domains["en"].roll(1, dims=0)}
        case "calibration":
            calibration = dataclasses.replace(CALIBRATION, samples=3)
        case "workload":
            workload = WORKLOAD._replace(steps=3)
        case "version":
            monkeypatch.setattr(module, "environment", lambda: here | {"ssmquant": "0.0.0"})
        case "threads":
            monkeypatch.setattr(executor, "threads", 64)
    compare(model, ["fp16"], domains, calibration, workload=workload, store=store, executor=executor)
    assert quantised == ["fp16", "fp16"]


def test_a_later_day_does_not(
    model: Model,
    domains: dict[str, Tensor],
    tmp_path: Path,
    quantised: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = RowStore(tmp_path)
    compare(model, ["fp16"], domains, CALIBRATION, workload=WORKLOAD, store=store)
    here = module.environment() | {"date": "2099-01-01T00:00:00Z"}
    monkeypatch.setattr(module, "environment", lambda: here)
    again = compare(model, ["fp16"], domains, CALIBRATION, workload=WORKLOAD, store=store)
    assert quantised == ["fp16"]
    assert again.environment["date"] != again.rows[0].measured


def test_a_recipe_file_that_changed_is_measured_again(
    model: Model, domains: dict[str, Tensor], tmp_path: Path, quantised: list[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    store = RowStore(tmp_path / "rows")
    for site in ("embedding.weight", "lm_head.weight"):
        recipe.write_text(
            "description: one site\nsource: a test\nschemes:\n  half: {kind: float, bits: 16}\n"
            f"rules:\n  - {{match: [{site}], scheme: half}}\n"
        )
        compare(model, [str(recipe)], domains, CALIBRATION, workload=WORKLOAD, store=store)
    assert quantised == [str(recipe)] * 2


def test_what_cannot_be_compared_is_refused_before_anything_runs(
    model: Model, domains: dict[str, Tensor], quantised: list[str]
) -> None:
    with pytest.raises(InputError, match="none was given"):
        compare(model, [], domains, CALIBRATION)
    with pytest.raises(InputError, match="'fp16' is given twice"):
        compare(model, ["fp16", "w8a8-naive", "fp16"], domains, CALIBRATION)
    with pytest.raises(RecipeError, match="fp61"):
        compare(model, ["fp16", "fp61"], domains, CALIBRATION)
    with pytest.raises(ModelError, match="no tokenizer"):
        compare(dataclasses.replace(model, tokenizer=None), ["fp16"], domains, CALIBRATION)
    assert quantised == []
    done = ssmquant.quantize(model, "fp16")
    with pytest.raises(ModelError, match="quantised already"):
        compare(done, ["fp16"], domains, CALIBRATION)
