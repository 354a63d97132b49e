"""`TensorScheme`: how one tensor is represented. Never inferred, never mutated, JSON-able.

A scheme says the kind and width of the codes, which elements share a scale, whether the scale is static, and how its
range is chosen from the statistics. It says nothing about where the tensor sits (`sites`) or which kernel runs it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["FLOAT32", "Granularity", "RangeRule", "TensorScheme"]


class Granularity(StrEnum):
    """Which elements share one scale.

    Scale shapes, for an activation of C channels, a weight ``[N, K]`` and a recurrent state ``[C, d_state]``:

    | granularity | activation | weight | state |
    |---|---|---|---|
    | per-tensor | ``[1]`` | ``[1]`` | ``[1, 1]`` |
    | per-channel | ``[C]`` | ``[N]`` | ``[C, 1]`` |
    | per-token | ``[tokens, 1]``, found at run time | ``[N]`` (embedding rows) | – |
    | per-group | – | ``[N, K / group_size]`` | – |
    | per-state-group | ``[ngroups]`` (B and C) | – | – |
    | per-head-group | ``[ngroups * head_groups * channel_groups]`` | – | that ``x [d_state]`` |
    """

    PER_TENSOR = "per-tensor"
    PER_CHANNEL = "per-channel"
    PER_TOKEN = "per-token"
    PER_GROUP = "per-group"
    PER_STATE_GROUP = "per-state-group"
    PER_HEAD_GROUP = "per-head-group"


class RangeRule(StrEnum):
    """How a static range is chosen: the largest magnitude, a percentile of magnitudes, or least squared error."""

    ABSMAX = "absmax"
    PERCENTILE = "percentile"
    MSE = "mse"


class TensorScheme(BaseModel):
    """How one tensor is represented at rest and in arithmetic.

    Attributes:
        kind: ``int`` (uniform codes), ``float`` (no codes; `bits` is the float's width) or ``lut`` (table of values).
        bits: width of a code or float.
        granularity: which elements share a scale.
        group_size: elements of K that share a scale, for per-group.
        head_groups, channel_groups: clusters of heads in an SSD group and of channels in a head group, for
            per-head-group (Quamba2, arXiv 2503.22879, section 4: m and n, both 4).
        symmetric: no zero point.
        dynamic: the scale is found at run time from the tensor itself.
        range: rule for a static range.
        percentile: percentage of magnitudes inside the range, for the percentile rule (99.999, say).
        interval: for a recurrent state that is not float32: the tokens between two roundings of the state.
        scale_dtype: type of the stored scales.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["int", "float", "lut"] = "int"
    bits: int = Field(default=8, ge=2, le=32)
    granularity: Granularity = Granularity.PER_TENSOR
    group_size: int | None = Field(default=None, ge=1)
    head_groups: int | None = Field(default=None, ge=1)
    channel_groups: int | None = Field(default=None, ge=1)
    symmetric: bool = True
    dynamic: bool = False
    range: RangeRule = RangeRule.ABSMAX
    percentile: float | None = Field(default=None, gt=50.0, le=100.0)
    interval: int | None = Field(default=None, ge=1)
    scale_dtype: Literal["float32"] = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        def needs(present: bool, wanted: bool, what: str) -> None:
            if present != wanted:
                raise ValueError(
                    f"{what} {'is missing' if wanted else 'has no meaning here'} in {self.short()!r}"
                )

        if self.kind == "float" and self.bits not in (16, 32):
            raise ValueError(f"a float scheme has 16 or 32 bits, not {self.bits}")
        if self.kind != "float" and self.bits > 8:
            raise ValueError(f"codes have at most 8 bits, not {self.bits}")
        piecewise = self.granularity is Granularity.PER_HEAD_GROUP
        needs(self.group_size is not None, self.granularity is Granularity.PER_GROUP, "group_size")
        needs(self.head_groups is not None, piecewise, "head_groups")
        needs(self.channel_groups is not None, piecewise, "channel_groups")
        needs(self.percentile is not None, self.range is RangeRule.PERCENTILE, "percentile")
        if self.dynamic and self.granularity is not Granularity.PER_TOKEN:
            raise ValueError(f"a dynamic scale is per-token, not {self.granularity}")
        return self

    @property
    def is_float(self) -> bool:
        """Whether the tensor has no codes."""
        return self.kind == "float"

    @property
    def is_static_int(self) -> bool:
        """Whether the tensor has integer codes with scales known before run time."""
        return self.kind == "int" and not self.dynamic

    def short(self) -> str:
        """Return a word for tables: ``int8 per-channel``, ``int8 per-token dynamic``, ``float32``."""
        if self.is_float:
            return f"float{self.bits}" + (f" every {self.interval}" if self.interval else "")
        words = [f"{self.kind}{self.bits}", str(self.granularity)]
        if self.granularity is Granularity.PER_HEAD_GROUP:
            words.append(f"{self.head_groups}x{self.channel_groups}")
        if self.group_size:
            words.append(str(self.group_size))
        if self.dynamic:
            words.append("dynamic")
        if self.range is RangeRule.PERCENTILE:
            words.append(f"p{self.percentile:g}")
        elif self.range is RangeRule.MSE:
            words.append("mse")
        if self.interval:
            words.append(f"every {self.interval}")
        return " ".join(words)


FLOAT32 = TensorScheme(kind="float", bits=32)
