"""Quantizers: how the codes of a weight are chosen. What they are stored as is the formats' business."""

from __future__ import annotations

from ssmquant.quantizers.base import Quantizer
from ssmquant.quantizers.clip import clip
from ssmquant.quantizers.descent import descent
from ssmquant.quantizers.gptq import gptq
from ssmquant.quantizers.kmeans import kmeans
from ssmquant.quantizers.mixed import mixed_gptq, mixed_rtn
from ssmquant.quantizers.round_to_nearest import round_to_nearest
from ssmquant.scheme import Granularity, TensorScheme

__all__ = [
    "QUANTIZERS",
    "Quantizer",
    "clip",
    "descent",
    "gptq",
    "kmeans",
    "mixed_gptq",
    "mixed_rtn",
    "round_to_nearest",
]


def _refused_whole(scheme: TensorScheme) -> str | None:
    if scheme.granularity is not Granularity.PER_TENSOR:
        return None
    return "it chooses a range for each row or group; use rtn, or per-channel or per-group scales"


QUANTIZERS = {
    quantizer.name: quantizer
    for quantizer in (
        Quantizer("rtn", lambda weight, scheme, hessian: round_to_nearest(weight, scheme)),
        Quantizer(
            "gptq",
            lambda weight, scheme, hessian: gptq(weight, hessian, scheme),
            needs="hessian",
        ),
        Quantizer(
            "gptq-sequential",
            lambda weight, scheme, hessian: gptq(weight, hessian, scheme),
            needs="hessian",
            sequential=True,
        ),
        Quantizer(
            "clip",
            lambda weight, scheme, hessian: clip(weight, hessian, scheme),
            needs="hessian",
            refuses=_refused_whole,
        ),
        Quantizer(
            "descent",
            lambda weight, scheme, hessian: descent(weight, hessian, scheme),
            needs="hessian",
            refuses=_refused_whole,
        ),
        Quantizer(
            "descent-sequential",
            lambda weight, scheme, hessian: descent(weight, hessian, scheme),
            needs="hessian",
            refuses=_refused_whole,
            sequential=True,
        ),
        Quantizer(
            "mixed-rtn",
            lambda weight, scheme, hessian: mixed_rtn(weight, hessian, scheme),
            needs="hessian",
            mixed=True,
        ),
        Quantizer(
            "mixed-gptq",
            lambda weight, scheme, hessian: mixed_gptq(weight, hessian, scheme),
            needs="hessian",
            mixed=True,
        ),
        Quantizer(
            "kmeans",
            lambda weight, scheme, fisher: kmeans(weight, fisher, scheme),
            needs="fisher",
            kind="lut",
        ),
    )
}
