"""Quantizers: how the codes of a weight are chosen. What they are stored as is the formats' business."""

from __future__ import annotations

from ssmquant.quantizers.base import Quantizer
from ssmquant.quantizers.gptq import gptq
from ssmquant.quantizers.round_to_nearest import round_to_nearest

__all__ = ["QUANTIZERS", "Quantizer", "gptq", "round_to_nearest"]

QUANTIZERS = {
    quantizer.name: quantizer
    for quantizer in (
        Quantizer("rtn", lambda weight, scheme, hessian: round_to_nearest(weight, scheme)),
        Quantizer("gptq", lambda weight, scheme, hessian: gptq(weight, hessian, scheme), needs_hessian=True),
    )
}
