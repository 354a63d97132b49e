"""`compare`: several recipes on one model and one text: each is a task that quantises, measures, and lets go.

A task holds the float model and one quantised model. Tasks know nothing of each other but two caches, of statistics
and of the float model's logits, so any executor can run them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from torch import Tensor

from ssmquant.calibrate import Progress, cache_folder
from ssmquant.data import calibration_windows
from ssmquant.errors import InputError, ModelError
from ssmquant.eval.environment import environment
from ssmquant.eval.evaluate import evaluate
from ssmquant.files import combined, digest, digests
from ssmquant.footprint import bits_activation, bits_weight, bytes_at_rest, float_share, state_bytes
from ssmquant.loading import plan
from ssmquant.model import Model
from ssmquant.pipeline import quantize
from ssmquant.report.comparison import Comparison
from ssmquant.report.executors import Executor, Serial
from ssmquant.report.memory import peak_bytes
from ssmquant.report.outliers import outlier_shares
from ssmquant.report.remembered import Remembered, remembered_logits
from ssmquant.report.row import Row
from ssmquant.report.sharing import SharedStatistics
from ssmquant.report.store import RowStore
from ssmquant.report.timing import WORKLOAD, Workload, relative_times

__all__ = ["Calibration", "compare", "require_recipes"]

_HERE = Serial()


@dataclass(frozen=True)
class Calibration:
    """What every recipe is calibrated on.

    Attributes:
        text: see `ssmquant.data.calibration_windows`.
        samples: sequences.
        seqlen: tokens of each.
    """

    text: str = "builtin"
    samples: int = 128
    seqlen: int = 512


def require_recipes(recipes: Sequence[str]) -> None:
    """Refuse a list of recipe references that is empty or names one twice.

    Raises:
        InputError: it is.
    """
    if not recipes:
        raise InputError(
            "compare: at least one recipe is needed, none was given; `ssmquant recipes` lists them"
        )
    repeated = [name for place, name in enumerate(recipes) if name in recipes[:place]]
    if repeated:
        raise InputError(f"compare: the recipe {repeated[0]!r} is given twice; name each once")


def compare(
    model: Model,
    recipes: Sequence[str],
    domains: Mapping[str, Tensor],
    calibration: Calibration,
    *,
    workload: Workload = WORKLOAD,
    store: RowStore | None = None,
    executor: Executor = _HERE,
    progress: Progress | None = None,
) -> Comparison:
    """Compare recipes on a float model.

    Args:
        model: the float model.
        recipes: references, each once.
        domains: name -> tokens to evaluate on, int64 [documents, L], see `ssmquant.eval.evaluate`.
        calibration: what to calibrate on.
        workload: what to time.
        store: finished rows are taken from here and put here.
        executor: runs the recipes, a task each; by default one after another.
        progress: called with (recipe and step, done, total).

    Raises:
        InputError: no recipe, or one twice.
        RecipeError: a recipe does not exist or does not fit the model; nothing has run.
        ModelError: the model is quantised already, or has no tokenizer.
        DataError: there is not enough text.
        CheckFailed: a quantised model gives logits that are not finite.
        SsmquantError: a recipe's worker was lost every time that it was tried.
    """
    require_recipes(recipes)
    if model.plan is not None:
        raise ModelError(
            f"{model.name} is quantised already ({model.plan.recipe}); compare on the float model"
        )
    if model.tokenizer is None:
        raise ModelError(
            f"{model.name} has no tokenizer, so it cannot be calibrated on text; pass tokenizer=…"
        )
    plans = {recipe: plan(model, recipe) for recipe in recipes}
    windows = calibration_windows(
        calibration.text, model.tokenizer, samples=calibration.samples, seqlen=calibration.seqlen
    )
    here = environment() | {"threads": executor.threads}
    calibrated = asdict(calibration) | {"tokens_digest": digest(windows)}
    common = {} if store is None else _identity(model, domains, calibrated, workload, here)
    identities = {
        recipe: common | {"recipe": recipe, "plan": made.to_json()} for recipe, made in plans.items()
    }
    found = {recipe: store.get(identities[recipe]) for recipe in recipes} if store else {}
    rows = {recipe: row for recipe, row in found.items() if row is not None}
    missing = [recipe for recipe in recipes if recipe not in rows]
    with remembered_logits(model, domains) as reference:
        task = _Measurement(reference, dict(domains), calibration, workload, executor, here["date"])
        for recipe, row in executor.map(task, missing, progress):
            rows[recipe] = row
            if store is not None:
                store.put(identities[recipe], row)
    return Comparison(model.name, here, calibrated, workload, tuple(rows[recipe] for recipe in recipes))


@dataclass(frozen=True)
class _Measurement:
    """The task of measuring a recipe; for its attributes see `compare`."""

    reference: Remembered
    domains: Mapping[str, Tensor]
    calibration: Calibration
    workload: Workload
    executor: Executor
    date: str

    def __call__(self, recipe: str, progress: Progress | None) -> Row:
        progress = _named(progress, recipe)
        statistics = SharedStatistics(self.executor, cache_folder())
        start = perf_counter()
        quantised = quantize(
            self.reference.model,
            recipe,
            calibration=self.calibration.text,
            samples=self.calibration.samples,
            seqlen=self.calibration.seqlen,
            progress=progress,
            cache=False,  # `statistics` has it, and counts what comes from it
            gather=statistics,
        )
        seconds = perf_counter() - start + statistics.excess
        quantised.name = recipe
        evaluation = evaluate(self.reference, [quantised], self.domains, progress=progress)
        threads = self.executor.threads
        engine, float_engine = (m.engine(threads=threads) for m in (quantised, self.reference.model))
        prefill, decode = relative_times(engine, float_engine, self.workload)
        planned = quantised.plan
        assert planned is not None
        return Row(
            recipe=recipe,
            bits_weight=bits_weight(planned),
            bits_activation=bits_activation(planned),
            bytes_at_rest=bytes_at_rest(quantised),
            state_bytes=state_bytes(quantised),
            float_share=float_share(planned, outlier_shares(quantised, self.domains)),
            calibration_s=seconds,
            peak_bytes=peak_bytes(quantised, self.workload, threads=threads),
            prefill=prefill,
            decode=decode,
            by_stages=engine.reason,
            measured=self.date,
            scores=evaluation.models[0],
        )


def _named(progress: Progress | None, recipe: str) -> Progress | None:
    """Return the callback with the recipe's name before every step."""
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{recipe}: {what}", done, total)


def _identity(
    model: Model,
    domains: Mapping[str, Tensor],
    calibrated: Mapping[str, Any],
    workload: Workload,
    here: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what all rows depend on: model, text, settings, versions and machine; not the date."""
    config = {name: str(value) for name, value in model.config.to_dict().items() if not name.startswith("_")}
    return {
        "model": combined(digests(model.shell.model.state_dict())),
        "config": config,
        "domains": {name: digest(ids) for name, ids in domains.items()},
        "calibration": dict(calibrated),
        "workload": workload._asdict(),
        "environment": {name: value for name, value in here.items() if name != "date"},
    }
