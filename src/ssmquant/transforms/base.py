"""`Transform`: a change of the float model's weights that keeps its function (tested: the same logits in float64)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from ssmquant.errors import RecipeError
from ssmquant.families import Shell
from ssmquant.families.table import Dims
from ssmquant.scheme import TensorScheme
from ssmquant.statistics import Needs, Statistics

__all__ = ["Context", "Transform", "replace_parameter"]


@dataclass
class Context:
    """What transforms are given and what they leave behind.

    Attributes:
        schemes: the plan's schemes, by site.
        statistics: of the model as it stands, with what the transform needs.
        params: numbers of the transform, from the recipe.
        groups: left behind: which scale each channel of a site has, int16 ``[C]`` (per-head-group scales).
    """

    schemes: Mapping[str, TensorScheme]
    statistics: Statistics = field(default_factory=Statistics)
    params: Mapping[str, float] = field(default_factory=dict)
    groups: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Transform:
    """A transform by name.

    Attributes:
        name: as recipes call it.
        apply: changes the shell, replacing parameters (never writing into them: tensors are shared with the source).
        needs: statistics that it needs of the model as it stands.
        check: raises `InputError` when the dimensions do not allow it.
        requires: transforms that must come before it.
        unties: whether embedding and head differ afterwards.
        online: whether the mixers do a part of it at run time.
        params: its numbers, which a recipe must all give, with the lowest and highest value of each.
    """

    name: str
    apply: Callable[[Shell, Context], None]
    needs: Callable[[Shell], Needs] = lambda shell: {}
    check: Callable[[Dims], None] = lambda dims: None
    requires: tuple[str, ...] = ()
    unties: bool = False
    online: bool = False
    params: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def check_params(self, given: Mapping[str, float]) -> None:
        """Raise `RecipeError` unless a recipe gives this transform its numbers, and no others."""
        if given.keys() != self.params.keys():
            raise RecipeError(
                f"transform {self.name!r} takes the params [{', '.join(self.params)}], "
                f"the recipe gives [{', '.join(given)}]"
            )
        for name, value in given.items():
            lowest, highest = self.params[name]
            if not lowest <= value <= highest:
                raise RecipeError(
                    f"transform {self.name!r}: {name} is {value:g}; it must be from {lowest:g} to {highest:g}"
                )


def replace_parameter(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module a new parameter tensor of the old one's dtype."""
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(value.to(old.dtype).contiguous(), requires_grad=old.requires_grad))
