"""`TensorScheme`: how one tensor is represented. Never inferred, never mutated, JSON-able.

A scheme says the kind and width of the codes, which elements share a scale, whether the scale is static, and how its
range is chosen from the statistics. It says nothing about where the tensor sits (`sites`) or which kernel runs it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["FLOAT32", "Granularity", "MixedPrecision", "RangeRule", "TensorScheme"]


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


class MixedPrecision(BaseModel):
    """How int4 weights in groups go together with int8 outlier channels and run-time activation codes.

    Atom, arXiv 2310.19102, section 4: input channels are ordered by their sum of squares, and the last ones, the
    outliers, stay int8 for weights (a scale a row) and activations (a scale a token).

    Attributes:
        outliers: input channels that stay int8.
        activation_bits: width of the activation's codes in the other channels, a scale a token and group.
        weight_clip: share of an int4 group's largest weight that its codes span.
        activation_clip: share of a group's largest activation that its codes span.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    outliers: int = Field(default=128, ge=1)
    activation_bits: int = Field(ge=2, le=8)
    weight_clip: float = Field(default=1.0, ge=0.5, le=1.0)
    activation_clip: float = Field(default=1.0, ge=0.5, le=1.0)


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
        mixed: for a weight of which some input channels are int8 and whose layer quantises its own input.
        outlier_threshold: for an int8 weight whose layer quantises its own input, but for columns in which a token
            reaches this magnitude (LLM.int8(), arXiv 2208.07339); those are multiplied in float16.
        sparse: for a table of values: percentage of the weights that are stored exactly, in float16, beside the codes.
        interval: for a recurrent state that is not float32: the tokens between two roundings of the state.
        scale_dtype: type of the stored scales. With ``uint8`` an int4 group has an integer multiplier of one float32
            scale a row, and its zero point in the same byte, so that sums over all of K are integers (QServe, arXiv
            2405.04532, section 4.1).
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
    mixed: MixedPrecision | None = None
    outlier_threshold: float | None = Field(default=None, gt=0.0)
    sparse: float | None = Field(default=None, gt=0.0, le=10.0)
    interval: int | None = Field(default=None, ge=1)
    scale_dtype: Literal["float32", "uint8"] = "float32"

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
        grouped = self.kind == "int" and self.bits == 4 and self.group_size
        if self.mixed and not (grouped and self.symmetric):
            raise ValueError(f"mixed goes with symmetric int4 codes per-group, not with {self.short()!r}")
        int8_rows = (
            self.kind == "int"
            and self.bits == 8
            and self.granularity is Granularity.PER_CHANNEL
            and self.symmetric
        )
        if self.outlier_threshold is not None and not int8_rows:
            raise ValueError(
                f"an outlier_threshold goes with symmetric int8 codes per-channel, not with {self.short()!r}"
            )
        if self.scale_dtype == "uint8" and not (grouped and not self.symmetric):
            raise ValueError(
                f"scale_dtype uint8 goes with asymmetric int4 codes per-group, not with {self.short()!r}"
            )
        if self.sparse is not None and self.kind != "lut":
            raise ValueError(f"sparse goes with a table of values (lut), not with {self.short()!r}")
        plain = self.range is RangeRule.ABSMAX and self.symmetric
        if self.is_float and not (plain and self.granularity is Granularity.PER_TENSOR and not self.dynamic):
            raise ValueError(
                "a granularity, dynamic scale, range rule or zero point has no meaning for a float scheme"
            )
        if self.dynamic and (self.range is not RangeRule.ABSMAX or self.interval):
            raise ValueError(
                "a range rule or interval has no meaning for a dynamic scale: it is found from the token itself"
            )
        if self.kind == "lut" and not (self.granularity is Granularity.PER_CHANNEL and plain):
            raise ValueError(
                f"a table (lut) is per-channel, with no range rule or zero point, not {self.short()!r}"
            )
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

    @property
    def quantises_input(self) -> bool:
        """Whether a weight's layer finds codes for its float input itself."""
        return self.mixed is not None or self.outlier_threshold is not None

    def short(self) -> str:
        """Return a word for tables: ``int8 per-channel``, ``int8 per-token dynamic``, ``float32``."""
        if self.is_float:
            return f"float{self.bits}" + (f" every {self.interval}" if self.interval else "")
        words = [f"{self.kind}{self.bits}", str(self.granularity)]
        if self.granularity is Granularity.PER_HEAD_GROUP:
            words.append(f"{self.head_groups}x{self.channel_groups}")
        if self.group_size:
            words.append(str(self.group_size))
        if self.mixed:
            words.append(f"+ {self.mixed.outliers} int8, activations int{self.mixed.activation_bits}")
        if self.outlier_threshold is not None:
            words.append(f"+ float16 from {self.outlier_threshold:g}")
        if not self.symmetric:
            words.append("asymmetric" if self.scale_dtype == "float32" else "progressive")
        if self.sparse:
            words.append(f"+ {self.sparse:g}% float16")
        if self.dynamic:
            words.append("dynamic")
        if self.percentile is not None:
            words.append(f"p{self.percentile:g}")
        elif self.range is RangeRule.MSE:
            words.append("mse")
        if self.interval:
            words.append(f"every {self.interval}")
        return " ".join(words)


FLOAT32 = TensorScheme(kind="float", bits=32)
