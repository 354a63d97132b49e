"""`quantize`: the passes in order: plan, transforms, calibration, weights.

transforms change a copy of the float model (its tensors are shared until replaced);
calibration sees the transformed float model;
the quantised model is built empty from the plan and filled layer by layer;
weights whose quantizer is a sequential one come last, with the text running through the quantised model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssmquant.allocation import settle
from ssmquant.calibrate import Gather, Progress, cache_folder, calibrate_cached, identity
from ssmquant.data import calibration_windows
from ssmquant.errors import ModelError, SsmquantError
from ssmquant.families import Shell, build
from ssmquant.files import digest
from ssmquant.model import Model
from ssmquant.modules.weights import Weight
from ssmquant.ops.registry import use_backend
from ssmquant.planning import Choice, Plan, PlanRow, statistic_site
from ssmquant.quantizers import QUANTIZERS
from ssmquant.ranges import needed, site_tensors
from ssmquant.recipe import Recipe, load_recipe
from ssmquant.resolution import resolve
from ssmquant.scheme import FLOAT32, TensorScheme
from ssmquant.sensitivity import Divergences, sensitivities, sensitivities_cached
from ssmquant.sequential import quantise_in_sequence
from ssmquant.statistics import Needs, Statistics
from ssmquant.transforms import TRANSFORMS, Context

__all__ = ["quantize"]


@torch.no_grad()
@use_backend("reference")
def quantize(
    model: Model,
    recipe: str | Path | Recipe,
    *,
    calibration: str = "builtin",
    samples: int = 128,
    seqlen: int = 512,
    progress: Progress | None = None,
    cache: bool = True,
    gather: Gather | None = None,
) -> Model:
    """Return a quantised copy of a float model; the model itself is not changed.

    Whatever the codes depend on is computed by the reference ops, so that no kernel changes a checkpoint.

    Args:
        model: a float model.
        recipe: recipe, reference of one (``quamba2-w8a8+ssm_state=float16``) or YAML file.
        calibration: text, see `ssmquant.data.calibration_windows`.
        samples: sequences of calibration text.
        seqlen: tokens of each.
        progress: called with (what, done, total).
        cache: whether statistics may come from and go to the cache.
        gather: gathers statistics that are not there yet; by default `ssmquant.calibrate.calibrate`.

    Raises:
        ModelError: the model is quantised already, or has no tokenizer for the text.
        RecipeError: the recipe does not exist or does not fit the model.
        DataError: there is not enough text.
    """
    if model.plan is not None:
        raise ModelError(
            f"{model.name} is quantised already ({model.plan.recipe}); start from the float model"
        )
    plan = resolve(load_recipe(recipe), model.config, tied=model.shell.tied)
    shell = _clone(model.shell, tied=plan.tied)
    calibrator = _Calibrator(
        model, calibration, samples, seqlen, progress, cache_folder() if cache else None, gather
    )
    context = Context(plan.schemes)
    for name in plan.transforms:
        context.statistics = calibrator(shell, TRANSFORMS[name].needs(shell))
        context.params = plan.params.get(name, {})
        TRANSFORMS[name].apply(shell, context)
    statistics = calibrator(shell, _needs(plan))

    def assembled(plan: Plan) -> Shell:
        return _assembled(plan, shell, statistics, context.groups, calibrator)

    if plan.choice:
        plan = settle(plan, _divergences(plan, plan.choice, shell, assembled, calibrator))
    quantised = assembled(plan)
    return Model(model.name, quantised, model.tokenizer, plan, calibrator.provenance)


def _assembled(
    plan: Plan, source: Shell, statistics: Statistics, groups: dict[str, Tensor], calibrator: _Calibrator
) -> Shell:
    """Return the quantised model of a plan; of what the plan leaves open, the cheapest.

    Args:
        plan: the plan.
        source: the transformed float model.
        statistics: what calibration saw of it.
        groups: group of each channel for per-head-group sites.
        calibrator: has the text, for weights that need it again.
    """
    coded = [row for row in plan.weights() if not row.scheme.is_float]
    later = [row for row in coded if QUANTIZERS[row.quantizer].sequential]
    first = {name: s for name, s in plan.schemes.items() if name not in {row.site.name for row in later}}
    quantised = build(source.config, first, hadamard=plan.hadamard, tied=plan.tied)
    _fill(quantised, source, plan, statistics, groups, calibrator.progress)
    if later:
        quantise_in_sequence(quantised, later, calibrator.windows, calibrator.progress)
    return quantised


def _divergences(
    plan: Plan, choice: Choice, shell: Shell, assembled: Callable[[Plan], Shell], calibrator: _Calibrator
) -> Divergences:
    """Return how sensitive the float model is to what a plan leaves to measurement; from the cache if it is there.

    Args:
        plan: the plan.
        choice: what it leaves open.
        shell: the transformed float model.
        assembled: makes the quantised model of a plan.
        calibrator: has the text.
    """

    def alone(schemes: Mapping[str, TensorScheme]) -> Shell:
        """Return the model that is float but for these sites."""
        return assembled(plan.with_schemes(dict.fromkeys(plan.schemes, FLOAT32) | dict(schemes)))

    def measured() -> Divergences:
        kinds = next(iter(choice.schemes.values()))
        weights = {scheme.short(): alone(dict.fromkeys(choice.schemes, scheme)) for scheme in kinds}
        layers = {n: s for n, s in plan.activation_schemes.items() if n.startswith("layers.")}
        activations = alone({n: s for n, s in layers.items() if not n.endswith(".state")})
        sites = list(choice.schemes)
        return sensitivities(shell, weights, sites, activations, calibrator.windows, calibrator.progress)

    unlimited = replace(choice, limit=0, float_share=0.0, budget="")  # what is measured depends on no budget
    content = replace(plan, recipe="", choice=unlimited).to_json()
    key = {"model": identity(shell), "windows": digest(calibrator.windows), "plan": content}
    return sensitivities_cached(measured, key, cache=calibrator.cache)


def _clone(source: Shell, *, tied: bool) -> Shell:
    """Return a float shell that shares the source's tensors; a head that is to be untied gets the embedding's."""
    target = build(source.config, tied=tied)
    tensors = source.model.state_dict()
    if source.tied and not tied:
        tensors = {**tensors, f"{source.family.head}.linear.weight": source.embedding.weight}
    target.model.load_state_dict(tensors, strict=True, assign=True)
    return target


class _Calibrator:
    """Calibrates on one text, read only when statistics are needed at all."""

    def __init__(
        self,
        model: Model,
        text: str,
        samples: int,
        seqlen: int,
        progress: Progress | None,
        cache: Path | None,
        gather: Gather | None,
    ) -> None:
        self._model, self._text, self._samples, self._seqlen = model, text, samples, seqlen
        self.progress, self.cache, self._gather = progress, cache, gather
        self._windows: Tensor | None = None
        self.provenance: dict[str, Any] = {}

    def __call__(self, shell: Shell, needs: Needs) -> Statistics:
        """Return the statistics that are needed; none are if nothing is."""
        if not needs:
            return Statistics()
        return calibrate_cached(
            shell, self.windows, needs, self.progress, cache=self.cache, gather=self._gather
        )

    @property
    def windows(self) -> Tensor:
        """The calibration text, int64 ``[n, L]``."""
        if self._windows is None:
            if self._model.tokenizer is None:
                raise ModelError(
                    f"{self._model.name} has no tokenizer, so it cannot be calibrated on text; pass tokenizer=…"
                )
            self._windows = calibration_windows(
                self._text, self._model.tokenizer, samples=self._samples, seqlen=self._seqlen
            )
            self.provenance = {
                "text": self._text,
                "samples": self._samples,
                "seqlen": self._seqlen,
                "tokens_digest": digest(self._windows),
            }
        return self._windows


def _needs(plan: Plan) -> Needs:
    """Return the statistics that the plan's ranges and quantizers need."""
    needs = dict(needed(plan.activation_schemes))
    for row in plan.rows:
        quantizer, source = QUANTIZERS[row.quantizer], statistic_site(row)
        wanted = None if quantizer.sequential else quantizer.needs
        if wanted and source and not row.scheme.is_float:
            needs[source] = tuple(dict.fromkeys((*needs.get(source, ()), wanted)))
    return needs


def _weight_statistic(row: PlanRow, statistics: Statistics) -> Tensor:
    """Return what the quantizer of a weight needs of calibration; empty if nothing."""
    source = statistic_site(row)
    if source is None:
        return torch.empty(0)
    return statistics.fisher(source) if source == row.site.name else statistics.hessian(source)


def _fill(
    target: Shell,
    source: Shell,
    plan: Plan,
    statistics: Statistics,
    groups: dict[str, Tensor],
    progress: Progress | None,
) -> None:
    """Give the empty quantised model its tensors: codes, scales, and the floats that stay."""
    paths = {id(module): path for path, module in target.model.named_modules()}
    floats = source.model.state_dict()
    tensors = {
        name: floats[name].to(empty.dtype).contiguous()
        for name, empty in target.model.state_dict().items()
        if name in floats
    }
    rows = {row.site.name: row for row in plan.rows}
    coded = [(name, weight) for name, weight in target.weights() if not weight.scheme.is_float]
    for done, (site_name, weight) in enumerate(coded, start=1):
        path = paths[id(weight)]
        module = source.model.get_submodule(path)
        assert isinstance(module, Weight)
        quantizer = QUANTIZERS[rows[site_name].quantizer]
        statistic = _weight_statistic(rows[site_name], statistics)
        try:
            codes = quantizer.choose(module.dequantize(), weight.scheme, statistic)
        except SsmquantError as error:
            raise type(error)(f"{site_name}: {error}") from error
        for name, tensor in weight.format.pack(codes).items():
            tensors[f"{path}.{name}"] = tensor.view(getattr(weight, name).shape).contiguous()
        if progress:
            progress("quantise weights", done, len(coded))
    for site_name, site in target.activations():
        for name, tensor in site_tensors(site_name, site, statistics, groups).items():
            tensors[f"{paths[id(site)]}.{name}"] = tensor
    target.model.load_state_dict(tensors, strict=True, assign=True)
