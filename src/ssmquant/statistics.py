"""`Statistics`: observers by site: mergeable, and stored as safetensors.

stats = first.merge(second)
stats.absmax("layers.0.x")       # float32 [d_inner]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.observers import (
    OBSERVERS,
    AbsMax,
    ChannelHistogram,
    Fisher,
    Hessian,
    Histogram,
    MeanAbs,
    Observer,
)

__all__ = ["Needs", "Statistics"]

Needs = Mapping[str, tuple[str, ...]]
"""Names of the observers wanted at each site."""

_SEPARATOR = "|"


@dataclass
class Statistics:
    """What calibration saw.

    Attributes:
        sites: observers by site name and observer name.
        seconds: what gathering them took, where it was measured: of a pass over the text by the pass's name, of an
            observer by ``pass|site|observer``. No part of what was seen: statistics with other times are equal.
    """

    sites: dict[str, dict[str, Observer]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @classmethod
    def empty(cls, needs: Needs) -> Statistics:
        """Return statistics that have seen nothing, with the observers asked for."""
        return cls({site: {name: OBSERVERS[name]() for name in names} for site, names in needs.items()})

    def update(self, site: str, x: Tensor, *, during: str) -> None:
        """Show the observers of a site some more of its tensor, and note how long each took.

        Args:
            site: name of the site.
            x: what they are to see, see `Observer.update`.
            during: name of the pass.
        """
        for name, observer in self.sites[site].items():
            start = perf_counter()
            observer.update(x)
            key = _SEPARATOR.join((during, site, name))
            self.seconds[key] = self.seconds.get(key, 0.0) + perf_counter() - start

    def merge(self, other: Statistics) -> Statistics:
        """Return the statistics of both data sets; the order does not matter.

        Raises:
            SsmquantError: they were gathered at different sites or with different observers.
        """
        if {s: set(o) for s, o in self.sites.items()} != {s: set(o) for s, o in other.sites.items()}:
            raise SsmquantError(
                "statistics of different sites or observers cannot be merged; gather both with the same needs"
            )
        return Statistics(
            {
                site: {name: observer.merge(other.sites[site][name]) for name, observer in observers.items()}
                for site, observers in self.sites.items()
            },
            {
                key: self.seconds.get(key, 0.0) + other.seconds.get(key, 0.0)
                for key in self.seconds | other.seconds
            },
        )

    def lacking(self, needs: Needs) -> dict[str, tuple[str, ...]]:
        """Return what these statistics lack of some needs."""
        missing = {
            site: tuple(name for name in names if name not in self.sites.get(site, {}))
            for site, names in needs.items()
        }
        return {site: names for site, names in missing.items() if names}

    def joined(self, other: Statistics) -> Statistics:
        """Return the observers of both, gathered on the same data; of an observer that both have, the other's."""
        sites = dict(self.sites)
        for site, observers in other.sites.items():
            sites[site] = {**sites.get(site, {}), **observers}
        return Statistics(sites, self.seconds | other.seconds)

    def cost(self, needs: Needs) -> float:
        """Return the seconds that gathering some needs alone takes: each pass once, and their observers."""
        wanted: set[str] = set()
        for key in self.seconds:
            during, *place = key.split(_SEPARATOR)
            if place and place[1] in needs.get(place[0], ()):
                wanted |= {key, during}
        return sum(self.seconds.get(key, 0.0) for key in wanted)

    def absmax(self, site: str) -> Tensor:
        """Return the largest magnitude a channel of a site, float32."""
        observer = self.sites[site][AbsMax.name]
        assert isinstance(observer, AbsMax)
        if observer.value is None:
            raise SsmquantError(f"site {site} was never observed; calibrate with at least one sequence")
        if not torch.isfinite(observer.value).all():
            raise SsmquantError(
                f"site {site}: the calibration text drives the float model to NaN or infinity; use other text"
            )
        return observer.value

    def histogram(self, site: str) -> Histogram:
        """Return the histogram of a site."""
        observer = self.sites[site][Histogram.name]
        assert isinstance(observer, Histogram)
        return observer

    def channel_histogram(self, site: str) -> ChannelHistogram:
        """Return the histograms of a site's channels."""
        observer = self.sites[site][ChannelHistogram.name]
        assert isinstance(observer, ChannelHistogram)
        return observer

    def hessian(self, site: str) -> Tensor:
        """Return the second moment of a site, float64 ``[C, C]``."""
        observer = self.sites[site][Hessian.name]
        assert isinstance(observer, Hessian)
        return observer.value

    def mean_abs(self, site: str) -> Tensor:
        """Return the mean magnitude a channel of a site, float64."""
        observer = self.sites[site][MeanAbs.name]
        assert isinstance(observer, MeanAbs)
        return observer.value

    def fisher(self, site: str) -> Tensor:
        """Return the sum of squared gradients of a weight site, float64 ``[N, K]``."""
        observer = self.sites[site][Fisher.name]
        assert isinstance(observer, Fisher)
        return observer.value

    def to_tensors(self) -> dict[str, Tensor]:
        """Return every observer's tensors, by ``site|observer|tensor``."""
        return {
            _SEPARATOR.join((site, name, key)): tensor
            for site, observers in self.sites.items()
            for name, observer in observers.items()
            for key, tensor in observer.state().items()
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Statistics:
        """Return the statistics that `to_tensors` wrote."""
        states: dict[str, dict[str, dict[str, Tensor]]] = {}
        for path, tensor in tensors.items():
            site, name, key = path.split(_SEPARATOR)
            states.setdefault(site, {}).setdefault(name, {})[key] = tensor
        return cls(
            {
                site: {name: OBSERVERS[name].from_state(state) for name, state in observers.items()}
                for site, observers in states.items()
            }
        )
