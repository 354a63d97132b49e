"""`Plan`: a recipe resolved against a model: one row a site, checked before anything runs, stored in the checkpoint.

plan = resolve(load_recipe("quamba2-w8a8"), config, tied=True)
plan.schemes["layers.0.x"].short()          # 'int8 per-head-group 4x4'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from typing import TYPE_CHECKING, Any

from ssmquant.errors import CheckpointError, InputError, RecipeError, nearest
from ssmquant.families import family_of, model_sites
from ssmquant.formats import format_for
from ssmquant.modules.activation import scale_shape
from ssmquant.modules.mixer import StateSite
from ssmquant.quantizers import QUANTIZERS
from ssmquant.recipe import Recipe, Rule
from ssmquant.scheme import FLOAT32, Granularity, RangeRule, TensorScheme
from ssmquant.sites import Site, SiteKind
from ssmquant.transforms import TRANSFORMS

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Plan", "PlanRow", "input_site", "resolve", "statistic_site"]

# The linear layers, and the site that each reads.
_LINEARS = {
    "in_proj": "hidden",
    "x_proj": "x",
    "dt_proj": "dt_in",
    "out_proj": "y",
    "lm_head": "lm_head.input",
}


@dataclass(frozen=True)
class PlanRow:
    """One site and what becomes of it.

    Attributes:
        site: the site.
        scheme: its scheme.
        rule: the pattern that decided; empty for the default (float32).
        quantizer: how the codes of a weight are chosen; of no meaning at other sites.
    """

    site: Site
    scheme: TensorScheme
    rule: str
    quantizer: str = "rtn"


@dataclass(frozen=True)
class Plan:
    """What is done to a model.

    Attributes:
        recipe: reference of the recipe.
        source: paper and section of the recipe.
        family: model type.
        transforms: names, in order.
        params: numbers of the transforms that have any, by name.
        tied: whether the head stays tied to the embedding.
        rows: one a site, in the order of the data flow.
    """

    recipe: str
    source: str
    family: str
    transforms: tuple[str, ...]
    tied: bool
    rows: tuple[PlanRow, ...]
    params: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def schemes(self) -> dict[str, TensorScheme]:
        """Scheme of every site that is not float32, by name."""
        return {row.site.name: row.scheme for row in self.rows if row.scheme != FLOAT32}

    @property
    def activation_schemes(self) -> dict[str, TensorScheme]:
        """Scheme of every activation and state site, by name."""
        return {row.site.name: row.scheme for row in self.rows if row.site.kind is not SiteKind.WEIGHT}

    @property
    def hadamard(self) -> bool:
        """Whether y is transformed online before out_proj."""
        return any(TRANSFORMS[name].online for name in self.transforms)

    def weight_bytes(self) -> int:
        """Bytes of the quantisable weights at rest."""
        return sum(
            _weight_bytes(row) for row in self.rows if not (self.tied and row.site.name == "lm_head.weight")
        )

    def float_bytes(self) -> int:
        """Bytes of the same weights in 16 bits, as models are distributed."""
        tied = any(row.site.name == "lm_head.weight" for row in self.rows) and self.tied
        numels = (r.site.numel for r in self.rows if r.site.kind is SiteKind.WEIGHT)
        head = next((r.site.numel for r in self.rows if r.site.name == "lm_head.weight"), 0)
        return 2 * (sum(numels) - (head if tied else 0))

    def summary(self) -> dict[str, int]:
        """Return how many sites have each scheme."""
        return dict(Counter(row.scheme.short() for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return the plan for config.json; float32 sites are left out."""
        names: dict[TensorScheme, str] = {}
        for row in self.rows:
            if row.scheme != FLOAT32:
                names.setdefault(row.scheme, f"s{len(names)}")
        return {
            "recipe": self.recipe,
            "source": self.source,
            "family": self.family,
            "transforms": list(self.transforms),
            "params": {name: dict(numbers) for name, numbers in self.params.items()},
            "tied": self.tied,
            "schemes": {
                name: scheme.model_dump(mode="json", exclude_defaults=True) for scheme, name in names.items()
            },
            "sites": {
                r.site.name: [names[r.scheme], r.rule, r.quantizer] for r in self.rows if r.scheme in names
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any], config: Any) -> Plan:
        """Return the plan that `to_json` wrote, for the model of this config.

        Raises:
            CheckpointError: the content is not a plan for this model.
        """
        try:
            if content["family"] != config.model_type:
                raise ValueError(
                    f"it is of the family {content['family']!r}, the model of {config.model_type!r}"
                )
            schemes = {name: TensorScheme.model_validate(s) for name, s in content["schemes"].items()}
            sites = {site.name: site for site in model_sites(config)}
            if unknown := [name for name in content["sites"] if name not in sites]:
                raise KeyError(f"site {unknown[0]}")
            if unknown := [name for name in content["transforms"] if name not in TRANSFORMS]:
                raise KeyError(f"transform {unknown[0]}")
            entries = content["sites"]
            rows = tuple(
                PlanRow(site, schemes[entries[name][0]], *entries[name][1:])
                if name in entries
                else PlanRow(site, FLOAT32, "")
                for name, site in sites.items()
            )
            return cls(
                content["recipe"], content["source"], content["family"], tuple(content["transforms"]),
                bool(content["tied"]), rows, content.get("params") or {},
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise CheckpointError(
                f"config.json: quantization_config is no plan for this model ({error}); "
                "the folder is damaged or was written by another version"
            ) from error

    def table(self) -> Table:
        """Return the plan for people: layers with the same schemes are one row."""
        from rich.table import Table

        table = Table(
            "site", "dimensions", "scheme", "quantizer", "rule", title=f"{self.recipe} on {self.family}"
        )
        for name, row in self._merged().items():
            dims = " × ".join(f"{size} {dim}" for dim, size in row.site.dims.items())
            coded = row.site.kind is SiteKind.WEIGHT and not row.scheme.is_float
            table.add_row(
                name, dims, row.scheme.short(), row.quantizer if coded else "", row.rule or "default"
            )
        return table

    def _merged(self) -> dict[str, PlanRow]:
        """Return rows under names with the layer number replaced by a range where all its layers agree."""
        groups: dict[tuple[str, TensorScheme, str], list[tuple[int, PlanRow]]] = {}
        for row in self.rows:
            head, _, rest = row.site.name.partition(".")
            number, _, local = rest.partition(".")
            key = (
                (f"layers.{{}}.{local}", row.scheme, row.rule)
                if head == "layers"
                else (row.site.name, row.scheme, row.rule)
            )
            groups.setdefault(key, []).append((int(number) if head == "layers" else 0, row))
        return {key[0].format(_ranges([n for n, _ in found])): found[0][1] for key, found in groups.items()}


def _ranges(numbers: list[int]) -> str:
    """Return ``0-3,7`` for [0, 1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _weight_bytes(row: PlanRow) -> int:
    if row.site.kind is not SiteKind.WEIGHT:
        return 0
    out, columns = row.site.dims.values()
    specs = format_for(row.scheme).tensors((out, columns), row.scheme).values()
    return sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs)


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
    return Plan(recipe.reference, recipe.source, family.name, transforms, tied, rows, params)


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
        if site.kind is SiteKind.ACTIVATION and not scheme.is_float:
            for consumer in site.consumers:
                _check_linear(site, scheme, consumer, schemes)
    except InputError as error:
        raise RecipeError(f"site {site.name} (pattern {row.rule!r}): {error}") from error


def _check_weight(row: PlanRow) -> None:
    eight_bits = row.scheme.kind == "int" and row.scheme.bits == 8
    if input_site(row.site) is None and not (row.scheme.is_float or eight_bits):
        raise RecipeError(f"{row.scheme.short()!r} is for linear layers; use int8 or a float here")


def _check_range(site: Site, scheme: TensorScheme) -> None:
    if scheme.interval and site.kind is not SiteKind.STATE:
        raise RecipeError("an interval is for a recurrent state")
    if scheme.range is not RangeRule.ABSMAX and site.kind is SiteKind.WEIGHT:
        raise RecipeError(f"the rule {scheme.range} is for activations; a weight's range is its quantizer's")
    if scheme.range is not RangeRule.ABSMAX and scheme.granularity is not Granularity.PER_TENSOR:
        raise RecipeError(f"the rule {scheme.range} is known for per-tensor scales only; use absmax")


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
        raise RecipeError(reason)
    if quantizer.needs and statistic_site(row) is None:
        raise RecipeError(
            f"{row.quantizer} needs the {quantizer.needs} of calibration, which only linear layers have; use rtn"
        )


def input_site(weight: Site) -> str | None:
    """Return the name of the activation site that a weight's linear layer reads; None if it is no linear layer."""
    prefix, _, stage = weight.name.removesuffix(".weight").rpartition(".")
    source = _LINEARS.get(stage)
    return f"{prefix}.{source}" if source and prefix else source


def statistic_site(row: PlanRow) -> str | None:
    """Return the site whose statistic the quantizer of a weight needs; None if it needs none, or there is none."""
    source, needs = input_site(row.site), QUANTIZERS[row.quantizer].needs
    if source is None or needs is None:
        return None
    return row.site.name if needs == "fisher" else source


def _check_linear(
    site: Site, scheme: TensorScheme, consumer: str, schemes: Mapping[str, TensorScheme]
) -> None:
    if consumer not in _LINEARS:
        return
    prefix = site.name.rpartition(".")[0] + "." if site.name.startswith("layers.") else ""
    weight = schemes[f"{prefix}{consumer}.weight"]
    if reason := format_for(weight).refuses_codes:
        raise RecipeError(f"{consumer}'s weight is {weight.short()}: {reason}")
    if scheme.granularity not in (Granularity.PER_TENSOR, Granularity.PER_TOKEN) and not weight.is_float:
        raise RecipeError(
            f"{scheme.granularity} scales cannot leave the integer sum of {consumer}; use per-tensor or per-token"
        )
