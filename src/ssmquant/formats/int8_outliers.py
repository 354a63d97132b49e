"""Int8 weights whose layer keeps input columns with outliers in float16: stored as `int8`, `codes` and `scale [out]`.

LLM.int8(), arXiv 2208.07339. Which columns those are is found at run time, so that nothing more is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ssmquant.formats.int8 import Int8
from ssmquant.ops.outlier_linear import outlier_linear
from ssmquant.scheme import TensorScheme

__all__ = ["Int8Outliers"]


@dataclass(frozen=True)
class Int8Outliers(Int8):
    """Int8 codes; the layer finds int8 codes for its input a token, but for columns with outliers.

    Attributes:
        threshold: magnitude from which an element of the input is an outlier.
    """

    name = "int8-outliers"
    refuses_codes = "its layer quantises its own input and has to see the outliers; leave the input float"
    threshold: float = 6.0

    def of(self, scheme: TensorScheme) -> Int8Outliers:
        """Return the format with the scheme's threshold."""
        assert scheme.outlier_threshold
        return Int8Outliers(scheme.outlier_threshold)

    def supports(self, scheme: TensorScheme) -> bool:
        """Return whether the scheme keeps outliers of the input in float."""
        return scheme.outlier_threshold is not None

    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return the product of the weight's codes and those that are found for a float x, outliers in float16."""
        y: Tensor = outlier_linear(x, self.threshold, stored["codes"], stored["scale"], bias, scale_out)
        return y
