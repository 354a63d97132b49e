"""Observers: what calibration remembers of a tensor. Each is a commutative monoid, so shards merge in any order."""

from __future__ import annotations

from ssmquant.observers.absmax import AbsMax
from ssmquant.observers.base import Observer
from ssmquant.observers.hessian import Hessian
from ssmquant.observers.histogram import Histogram

__all__ = ["OBSERVERS", "AbsMax", "Hessian", "Histogram", "Observer"]

OBSERVERS: dict[str, type[Observer]] = {observer.name: observer for observer in (AbsMax, Histogram, Hessian)}
