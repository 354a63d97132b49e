"""`Site`: a place in a model that holds a quantisable tensor. Rules, statistics and schemes attach to its name.

Names are short and the same for every family: ``layers.3.in_proj.weight``, ``layers.3.x``, ``lm_head.input``.
Each mixer declares its own sites; `families` prefixes them with the layer and adds embedding and head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import prod

__all__ = ["Site", "SiteKind", "activation_site", "weight_site"]


class SiteKind(StrEnum):
    """What a site holds."""

    WEIGHT = "weight"
    ACTIVATION = "activation"
    STATE = "state"


@dataclass(frozen=True)
class Site:
    """One quantisable tensor.

    Attributes:
        name: dotted name, unique in the model.
        kind: weight, activation or recurrent state.
        dims: name and size of each dimension, tokens and batch left out; for a weight, ``[out, in]``. The sizes of
            ``ngroups``, ``heads`` (of one SSD group) and ``headdim`` are kept apart so that piecewise scales know them.
        producer: the stage that writes the tensor.
        consumers: the stages that read it.
    """

    name: str
    kind: SiteKind
    dims: Mapping[str, int]
    producer: str
    consumers: tuple[str, ...]

    @property
    def numel(self) -> int:
        """Elements of the tensor (of one token, or of one sequence for a state)."""
        return prod(self.dims.values())

    def within(self, prefix: str) -> Site:
        """Return the same site under ``prefix.``."""
        return replace(self, name=f"{prefix}.{self.name}")


def activation_site(name: str, dims: Mapping[str, int], producer: str, *consumers: str) -> Site:
    """Return the site of an activation; arguments as the attributes of `Site`."""
    return Site(name, SiteKind.ACTIVATION, dims, producer, consumers)


def weight_site(stage: str, out: int, columns: int) -> Site:
    """Return the site of a stage's weight ``[out, columns]``."""
    return Site(f"{stage}.weight", SiteKind.WEIGHT, {"out": out, "in": columns}, "checkpoint", (stage,))
