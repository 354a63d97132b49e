"""Quantizers: how the codes of a weight are chosen. What they are stored as is the formats' business."""

from __future__ import annotations

from ssmquant.quantizers.round_to_nearest import round_to_nearest

__all__ = ["round_to_nearest"]
