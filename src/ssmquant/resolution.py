"""`resolve`: from a recipe and a model's config to a plan. What does not fit is refused here, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from math import ceil
from typing import Any

from ssmquant.errors import InputError, RecipeError, nearest
from ssmquant.families import family_of, model_sites
from ssmquant.formats import format_for
from ssmquant.modules.activation import scale_shape
from ssmquant.modules.mixer import StateSite
from ssmquant.modules.weights import CausalConv1d, Embedding, Linear, Weight
from ssmquant.planning import LINEARS, Choice, Plan, PlanRow, statistic_site
from ssmquant.quantizers import QUANTIZERS
from ssmquant.recipe import Choose, Recipe, Rule
from ssmquant.scheme import FLOAT32, Granularity, RangeRule, TensorScheme
from ssmquant.sites import Site, SiteKind
from ssmquant.transforms import TRANSFORMS

__all__ = ["resolve"]


def resolve(recipe: Recipe, config: Any, *, tied: bool) -> Plan:
    """Return the plan of a recipe for a model.

    Args:
        recipe: the recipe with its options.
        config: transformers' config of the model.
        tied: whether the model's head is its embedding.

    Raises:
        RecipeError: the recipe refuses this kind of model, a rule matches no site, or a scheme has no meaning at its
            site; nothing has run.
    """
    family = family_of(config.model_type, "config.json")
    if reason := recipe.refuses.get(family.kind):
        raise RecipeError(f"recipe {recipe.name!r} does not fit {family.name} models: {reason}")
    options = recipe.settings
    rules = [rule for rule in recipe.rules if rule.applies(options, family.kind)]
    kept = Rule(match=recipe.keep, scheme="float32") if recipe.keep else None
    schemes = {**recipe.schemes, "float32": FLOAT32}
    patterns = [(p, rule) for rule in (*rules, *([kept] if kept else [])) for p in rule.match]
    sites = model_sites(config)
    names = [site.name for site in sites]
    for pattern, _ in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = nearest(pattern.replace("*", "0"), names)
            raise RecipeError(
                f"recipe {recipe.name!r}: the pattern {pattern!r} matches no site of this model; {hint}"
            )
    steps = [step for step in recipe.transforms if step.applies(options, family.kind)]
    transforms = tuple(step.name for step in steps)
    for name in transforms:
        if name not in TRANSFORMS:
            raise RecipeError(f"recipe {recipe.name!r}: no transform {name!r}; {nearest(name, TRANSFORMS)}")
    for step in steps:
        try:
            TRANSFORMS[step.name].check_params(step.params)
            TRANSFORMS[step.name].check(family.dims(config))
        except InputError as error:
            raise RecipeError(f"recipe {recipe.name!r}: {error}") from error
    rows = tuple(_row(site, patterns, schemes) for site in sites)
    by_name = {row.site.name: row.scheme for row in rows}
    for row in rows:
        _check(row, by_name, transforms)
    for place, name in enumerate(transforms):
        if missing := [n for n in TRANSFORMS[name].requires if n not in transforms[:place]]:
            raise RecipeError(f"recipe {recipe.name!r}: transform {name!r} needs {missing[0]!r} before it")
    if list(transforms) != [name for name in TRANSFORMS if name in transforms]:
        raise RecipeError(f"recipe {recipe.name!r}: transforms go in the order {', '.join(TRANSFORMS)}")
    tied = (
        tied
        and not any(TRANSFORMS[name].unties for name in transforms)
        and by_name["embedding.weight"] == by_name["lm_head.weight"]
    )
    params = {step.name: step.params for step in steps if step.params}
    plan = Plan(recipe.reference, recipe.source, family.name, transforms, tied, rows, params)
    return plan if recipe.choose is None else _with_choice(plan, recipe, recipe.choose)


def _with_choice(plan: Plan, recipe: Recipe, choose: Choose) -> Plan:
    """Return the plan with what is left to measurement, the cheapest of it in the rows."""
    named = [recipe.schemes[name] for name in choose.schemes]
    options: dict[str, tuple[TensorScheme, ...]] = {}
    for row in plan.weights():
        if row.scheme in named and any(fnmatchcase(row.site.name, pattern) for pattern in choose.match):
            if not row.site.name.startswith("layers."):
                raise RecipeError(f"site {row.site.name}: only weights of layers are chosen by measurement")
            rows = sorted((replace(row, scheme=scheme) for scheme in named), key=PlanRow.weight_bytes)
            options[row.site.name] = tuple(candidate.scheme for candidate in rows)
    if not options:
        raise RecipeError(f"recipe {recipe.name!r}: it leaves no weight to choose a scheme for; drop a +keep")
    for scheme in named:
        candidate = plan.with_schemes(dict.fromkeys(options, scheme))
        for row in candidate.rows:
            _check(row, {row.site.name: row.scheme for row in candidate.rows}, candidate.transforms)
    plan = plan.with_schemes({site: schemes[0] for site, schemes in options.items()})
    chosen = [row for row in plan.weights() if row.site.name in options]
    smallest, numel = sum(row.weight_bytes() for row in chosen), sum(row.site.numel for row in chosen)
    others = plan.weight_bytes() - smallest
    if choose.budget.endswith("bits"):
        limit = int(float(choose.budget.removesuffix("bits")) * numel / 8)
    else:
        limit = int(float(choose.budget.removesuffix("mb")) * 1e6) - others
    if limit < smallest:
        raise RecipeError(
            f"recipe {recipe.name!r}: a budget of {choose.budget} cannot be reached; the smallest that can is "
            f"{_up(8 * smallest / numel)}bits, {_up((smallest + others) / 1e6)}mb"
        )
    share = float(choose.float_share.removesuffix("%")) / 100
    return replace(plan, choice=Choice(options, limit, share, choose.budget))


def _up(number: float) -> str:
    """Return a number in thousandths, rounded up, so that it suffices."""
    return f"{ceil(number * 1000) / 1000:.3f}"


def _row(site: Site, patterns: list[tuple[str, Rule]], schemes: Mapping[str, TensorScheme]) -> PlanRow:
    for pattern, rule in reversed(patterns):
        if fnmatchcase(site.name, pattern):
            return PlanRow(site, schemes[rule.scheme], pattern, rule.quantizer)
    return PlanRow(site, FLOAT32, "")


def _check(row: PlanRow, schemes: Mapping[str, TensorScheme], transforms: tuple[str, ...]) -> None:
    """Raise unless the scheme has a meaning at the site."""
    site, scheme = row.site, row.scheme
    try:
        if site.kind is SiteKind.WEIGHT:
            out, columns = site.dims.values()
            format_for(scheme).tensors((out, columns), scheme)
            _check_weight(row)
            _check_quantizer(row)
        elif site.kind is SiteKind.STATE:
            if not scheme.is_float:
                StateSite.scale_shape(site.dims, scheme)
            if (scheme != FLOAT32) != bool(scheme.interval):
                raise RecipeError("a reduced state needs an interval, and a float32 state has none")
        elif scheme != FLOAT32 and not (scheme.kind == "int" and (scheme.dynamic or scheme.bits == 8)):
            raise RecipeError(f"activations are float32 or int8 between the stages, not {scheme.short()!r}")
        elif scheme.is_static_int:
            scale_shape(site.dims, scheme)
        _check_range(site, scheme)
        if scheme.granularity is Granularity.PER_HEAD_GROUP and "reorder" not in transforms:
            raise RecipeError("per-head-group scales need the transform 'reorder', which finds the groups")
        if site.kind is not SiteKind.WEIGHT and not scheme.symmetric:
            raise RecipeError("zero points are for weights; make this scheme symmetric")
        if site.kind is not SiteKind.WEIGHT and scheme.quantises_input:
            raise RecipeError(
                "an outlier_threshold is for the weight whose layer reads this; leave this float"
            )
        if site.kind is SiteKind.ACTIVATION and not scheme.is_float:
            for consumer in site.consumers:
                _check_linear(site, scheme, consumer, schemes)
    except InputError as error:
        raise RecipeError(f"site {site.name} (pattern {row.rule!r}): {error}") from error


def _check_weight(row: PlanRow) -> None:
    stage: type[Weight] = {"embedding": Embedding, "conv1d": CausalConv1d}.get(row.site.consumers[0], Linear)
    if stage.formats and format_for(row.scheme).name not in stage.formats:
        usable = ", ".join(stage.formats).replace("dense", "a float")
        raise RecipeError(f"{row.scheme.short()!r} is for linear layers; have {usable} here")


def _check_range(site: Site, scheme: TensorScheme) -> None:
    if scheme.interval and site.kind is not SiteKind.STATE:
        raise RecipeError("an interval is for a recurrent state")
    if scheme.range is not RangeRule.ABSMAX and site.kind is SiteKind.WEIGHT:
        raise RecipeError(f"the rule {scheme.range} is for activations; a weight's range is its quantizer's")
    known = [Granularity.PER_TENSOR]
    if scheme.range is RangeRule.MSE:
        known.append(Granularity.PER_STATE_GROUP)
    if scheme.range is not RangeRule.ABSMAX and scheme.granularity not in known:
        raise RecipeError(
            f"the rule {scheme.range} is known for {' and '.join(known)} scales only; use absmax"
        )


def _check_quantizer(row: PlanRow) -> None:
    if row.quantizer not in QUANTIZERS:
        raise RecipeError(f"no quantizer {row.quantizer!r}; {nearest(row.quantizer, QUANTIZERS)}")
    scheme = row.scheme
    fitting = [
        name
        for name, quantizer in QUANTIZERS.items()
        if quantizer.mixed == bool(scheme.mixed) and (scheme.is_float or quantizer.kind == scheme.kind)
    ]
    if row.quantizer not in fitting:
        raise RecipeError(
            f"{row.quantizer} has no codes for {scheme.short()!r}; use one of {', '.join(fitting)}"
        )
    quantizer = QUANTIZERS[row.quantizer]
    if not scheme.is_float and (reason := quantizer.refuses(scheme)):
        raise RecipeError(f"{row.quantizer} does not go with {scheme.short()!r}: {reason}")
    if quantizer.needs and statistic_site(row) is None:
        raise RecipeError(
            f"{row.quantizer} needs the {quantizer.needs} of calibration, which only linear layers have; use rtn"
        )


def _check_linear(
    site: Site, scheme: TensorScheme, consumer: str, schemes: Mapping[str, TensorScheme]
) -> None:
    if consumer not in LINEARS:
        return
    prefix = site.name.rpartition(".")[0] + "." if site.name.startswith("layers.") else ""
    weight = schemes[f"{prefix}{consumer}.weight"]
    if reason := format_for(weight).refuses_codes:
        raise RecipeError(f"{consumer}'s weight is {weight.short()}: {reason}")
    if scheme.granularity not in (Granularity.PER_TENSOR, Granularity.PER_TOKEN) and not weight.is_float:
        raise RecipeError(
            f"{scheme.granularity} scales cannot leave the integer sum of {consumer}; use per-tensor or per-token"
        )
