"""Observers: what calibration remembers of a tensor. Each is a commutative monoid, so shards merge in any order."""

from __future__ import annotations

from ssmquant.observers.absmax import AbsMax
from ssmquant.observers.base import Observer
from ssmquant.observers.channel_histogram import ChannelHistogram
from ssmquant.observers.fisher import Fisher
from ssmquant.observers.hessian import Hessian
from ssmquant.observers.histogram import Histogram
from ssmquant.observers.mean_abs import MeanAbs

__all__ = ["OBSERVERS", "AbsMax", "ChannelHistogram", "Fisher", "Hessian", "Histogram", "MeanAbs", "Observer"]

OBSERVERS: dict[str, type[Observer]] = {
    observer.name: observer for observer in (AbsMax, Histogram, ChannelHistogram, Hessian, MeanAbs, Fisher)
}
