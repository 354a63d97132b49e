"""`Plan`: a recipe resolved against a model (by `resolution`): one row a site, stored in the checkpoint.

plan = resolution.resolve(load_recipe("quamba2-w8a8"), config, tied=True)
plan.schemes["layers.0.x"].short()          # 'int8 per-head-group 4x4'
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Any

from ssmquant.errors import CheckpointError
from ssmquant.families import model_sites
from ssmquant.formats import format_for
from ssmquant.quantizers import QUANTIZERS
from ssmquant.scheme import FLOAT32, TensorScheme
from ssmquant.sites import Site, SiteKind
from ssmquant.transforms import TRANSFORMS

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["LINEARS", "Allocation", "Choice", "Plan", "PlanRow", "input_site", "statistic_site"]

# The linear layers, and the site that each reads.
LINEARS = {
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

    def weight_bytes(self) -> int:
        """Bytes of a weight at rest."""
        out, columns = self.site.dims.values()
        specs = format_for(self.scheme).tensors((out, columns), self.scheme).values()
        return sum(prod(spec.shape) * spec.dtype.itemsize for spec in specs)


@dataclass(frozen=True)
class Choice:
    """What is left to measurement: a scheme for each of some weights, and which layers have float activations.

    Attributes:
        schemes: by site, what it may be, cheapest first.
        limit: most bytes that these weights may take.
        float_share: largest share of the layers' multiplications in layers with float activations.
        budget: as it was asked for, ``4.5bits`` or ``120mb``.
    """

    schemes: Mapping[str, tuple[TensorScheme, ...]]
    limit: int
    float_share: float
    budget: str


@dataclass(frozen=True)
class Allocation:
    """What was chosen by measurement, and why.

    Attributes:
        budget: as it was asked for.
        bits: of the chosen weights at rest on average, scales included.
        float_share: share of the layers' multiplications in layers with float activations.
        gap: by how much of its summed divergence the choice may be above the best one, at most.
        divergence: KL of the model with one thing quantised alone, nats a token: by weight and scheme, by layer
            (``layers.3``) for its activations.
    """

    budget: str
    bits: float
    float_share: float
    gap: float
    divergence: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Plan:
    """What is done to a model.

    Attributes:
        recipe: reference of the recipe.
        source: paper and section of the recipe.
        family: model type.
        transforms: names, in order.
        params: numbers of the transforms that have any, by name.
        choice: what is still left to measurement; the rows have the cheapest until then.
        allocation: what was chosen by measurement.
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
    choice: Choice | None = None
    allocation: Allocation | None = None

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

    def weights(self) -> list[PlanRow]:
        """Rows of the quantisable weights, without that of a tied head, in the order of the data flow."""
        rows = (row for row in self.rows if row.site.kind is SiteKind.WEIGHT)
        return [row for row in rows if not (self.tied and row.site.name == "lm_head.weight")]

    def weight_bytes(self) -> int:
        """Bytes of the quantisable weights at rest."""
        return sum(row.weight_bytes() for row in self.weights())

    def float_bytes(self) -> int:
        """Bytes of the same weights in 16 bits, as models are distributed."""
        return 2 * sum(row.site.numel for row in self.weights())

    def with_schemes(self, schemes: Mapping[str, TensorScheme]) -> Plan:
        """Return the plan with other schemes at some sites."""

        def changed(row: PlanRow) -> PlanRow:
            scheme = schemes.get(row.site.name, row.scheme)
            return PlanRow(row.site, FLOAT32, "") if scheme == FLOAT32 else replace(row, scheme=scheme)

        return replace(self, rows=tuple(changed(row) for row in self.rows))

    def summary(self) -> dict[str, int]:
        """Return how many sites have each scheme."""
        return dict(Counter(row.scheme.short() for row in self.rows))

    def to_json(self) -> dict[str, Any]:
        """Return the plan for config.json; float32 sites are left out."""
        names: dict[TensorScheme, str] = {}
        for row in self.rows:
            if row.scheme != FLOAT32:
                names.setdefault(row.scheme, f"s{len(names)}")
        for scheme in (
            s for options in (self.choice.schemes if self.choice else {}).values() for s in options
        ):
            names.setdefault(scheme, f"s{len(names)}")
        content = {
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
        if self.choice:
            options = {site: [names[s] for s in schemes] for site, schemes in self.choice.schemes.items()}
            content["choice"] = {**asdict(replace(self.choice, schemes={})), "schemes": options}
        if self.allocation:
            content["allocation"] = asdict(self.allocation)
        return content

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
                bool(content["tied"]), rows, content.get("params") or {}, _choice(content, schemes),
                Allocation(**content["allocation"]) if "allocation" in content else None,
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


def _choice(content: Mapping[str, Any], schemes: Mapping[str, TensorScheme]) -> Choice | None:
    if "choice" not in content:
        return None
    options = {site: tuple(schemes[n] for n in names) for site, names in content["choice"]["schemes"].items()}
    return Choice(**{**content["choice"], "schemes": options})


def _ranges(numbers: list[int]) -> str:
    """Return ``0-3,7`` for [0, 1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def input_site(weight: Site) -> str | None:
    """Return the name of the activation site that a weight's linear layer reads; None if it is no linear layer."""
    prefix, _, stage = weight.name.removesuffix(".weight").rpartition(".")
    source = LINEARS.get(stage)
    return f"{prefix}.{source}" if source and prefix else source


def statistic_site(row: PlanRow) -> str | None:
    """Return the site whose statistic the quantizer of a weight needs; None if it needs none, or there is none."""
    source, needs = input_site(row.site), QUANTIZERS[row.quantizer].needs
    if source is None or needs is None:
        return None
    return row.site.name if needs == "fisher" else source
