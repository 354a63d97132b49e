"""Formats: what linear layers, convolutions and embeddings store, and which op runs them; one module each.

A new format is a subclass of `Format` in a module of its own and an entry in the list below.
"""

from __future__ import annotations

from torch import Tensor

from ssmquant.errors import RecipeError
from ssmquant.formats.base import Codes, Format, StoredTensor
from ssmquant.formats.dense import Dense
from ssmquant.formats.int4 import Int4
from ssmquant.formats.int4_asymmetric import Int4Asymmetric
from ssmquant.formats.int4_progressive import Int4Progressive
from ssmquant.formats.int8 import Int8
from ssmquant.formats.int8_outliers import Int8Outliers
from ssmquant.formats.lut import Lut
from ssmquant.formats.mixed_int4_int8 import MixedInt4Int8
from ssmquant.scheme import TensorScheme

__all__ = ["Codes", "Format", "StoredTensor", "format_for", "restored"]

_FORMATS: tuple[Format, ...] = (
    Dense(),
    Int8(),
    Int8Outliers(),
    Int4(),
    Int4Asymmetric(),
    Int4Progressive(),
    MixedInt4Int8(),
    Lut(),
)


def format_for(scheme: TensorScheme) -> Format:
    """Return the format that holds weights of this scheme.

    Raises:
        RecipeError: no format does.
    """
    for candidate in _FORMATS:
        if candidate.supports(scheme):
            return candidate.of(scheme)
    raise RecipeError(
        f"no weight format for scheme {scheme.short()!r}; have float32, float16, int8 per-tensor or per-channel, "
        "int8 per-channel with an outlier_threshold, int4 per-group (plain, asymmetric, or with scale_dtype uint8), "
        "int4 per-group with int8 outliers (mixed), lut per-channel of 3 or 4 bits"
    )


def restored(codes: Codes, scheme: TensorScheme) -> Tensor:
    """Return the float weight that codes stand for once they are stored, ``[out, in]``."""
    weight_format = format_for(scheme)
    return weight_format.dequantize(weight_format.pack(codes))
