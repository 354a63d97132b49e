"""Refused arguments: every message names the op, the argument, what is needed and what was found."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from ssmquant.errors import InputError

from .cases import SUITES

I8, F64, F16 = torch.int8, torch.float64, torch.float16


def floats(*shape: int) -> torch.Tensor:
    return torch.zeros(shape)


def codes(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=I8)


# Arguments that are right; each refusal below replaces some of them.
SOUND: dict[str, dict[str, Any]] = {
    "int8_linear": {
        "x": codes(2, 8), "x_scale": floats(1), "weight": codes(3, 8), "weight_scale": floats(3), "bias": None,
        "scale_out": None,
    },
    "int4_linear": {
        "x": codes(2, 8), "x_scale": floats(1), "packed": codes(3, 4).view(torch.uint8),
        "weight_scale": floats(3, 2), "bias": None, "scale_out": None,
    },
    "int4_progressive_linear": {
        "x": codes(2, 8), "x_scale": floats(1), "packed": codes(3, 4).view(torch.uint8),
        "grid": torch.full((3, 2), 0x81, dtype=torch.uint8), "weight_scale": floats(3), "bias": None, "scale_out": None,
    },
    "float_linear": {
        "x": floats(2, 8), "weight": codes(3, 4).view(torch.uint8), "scale": floats(3, 2),
        "zero_point": codes(3, 2), "grid": None, "bias": None, "scale_out": None,
    },
    "mixed_linear": {
        "x": floats(2, 7), "order": torch.arange(7, dtype=torch.int32), "packed": codes(3, 2).view(torch.uint8),
        "weight_scale": floats(3, 2), "outliers": codes(3, 3), "outlier_scale": floats(3), "bits": 4, "clip": 0.9,
        "bias": None, "scale_out": None,
    },
    "outlier_linear": {
        "x": floats(2, 8), "threshold": 6.0, "weight": codes(3, 8), "weight_scale": floats(3), "bias": None,
        "scale_out": None,
    },
    "causal_conv1d": {
        "x": floats(2, 5, 3), "x_scale": None, "weight": floats(3, 4), "weight_scale": None, "bias": None,
        "state": floats(2, 3, 4), "scale_out": None,
    },
    "ssd": {
        "x": floats(2, 5, 4, 3), "x_scale": None, "dt": floats(2, 5, 4), "dt_scale": None, "A": floats(4),
        "B": floats(2, 5, 2, 6), "B_scale": None, "C": floats(2, 5, 2, 6), "C_scale": None, "D": floats(4),
        "dt_bias": floats(4), "dt_min": 0.0, "dt_max": 1.0, "state": floats(2, 4, 3, 6), "state_scale": None,
        "interval": 0,
    },
    "selective_scan": {
        "x": floats(2, 5, 4), "x_scale": None, "dt": floats(2, 5, 4), "dt_scale": None, "A": floats(4, 6),
        "B": floats(2, 5, 6), "B_scale": None, "C": floats(2, 5, 6), "C_scale": None, "D": floats(4),
        "dt_bias": floats(4), "state": floats(2, 4, 6), "state_scale": None, "interval": 0,
    },
    "rms_norm": {"x": floats(2, 6), "weight": floats(6), "eps": 1e-5, "scale_out": None},
    "gated_rms_norm": {
        "y": floats(2, 6), "z": floats(2, 6), "z_scale": None, "weight": floats(6), "eps": 1e-5, "group_size": 3,
        "hadamard": False, "scale_out": None,
    },
    "gate": {"y": floats(2, 6), "z": floats(2, 6), "z_scale": None, "hadamard": False, "scale_out": None},
    "hadamard": {"x": floats(2, 4)},
    "quantize_static": {"x": floats(2, 6), "scale": floats(1)},
    "quantize_per_token": {"x": floats(2, 6), "bits": 8},
    "int4_embedding": {
        "ids": torch.zeros(2, 3, dtype=torch.int64), "packed": codes(5, 3).view(torch.uint8), "scale": floats(5, 2),
    },
    "int8_embedding": {"ids": torch.zeros(2, 3, dtype=torch.int64), "weight": codes(5, 4), "scale": floats(5)},
}  # fmt: skip

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("int8_linear", {"x": floats(2, 8)}, "x must be torch.int8, got torch.float32"),
    ("int8_linear", {"weight": floats(3, 8)}, "weight must be torch.int8, got torch.float32"),
    ("int8_linear", {"weight": codes(3, 7)}, "weight must have shape [any, 8], got [3, 7]"),
    ("int8_linear", {"x_scale": floats(1).half()}, "x_scale must be torch.float32, got torch.float16"),
    (
        "int8_linear",
        {"x_scale": floats(8)},
        "x_scale must have shape [1] (static) or [2, 1] (per token), got [8]",
    ),
    ("int8_linear", {"x_scale": floats(2)}, "got [2]; a scale a channel of K cannot leave the integer sum"),
    ("int8_linear", {"weight_scale": floats(2)}, "weight_scale must have shape [1] or [3], got [2]"),
    ("int8_linear", {"weight_scale": floats(3, 1)}, "weight_scale must have shape [1] or [3], got [3, 1]"),
    ("int8_linear", {"scale_out": floats(2)}, "scale_out must have shape [1] or [3], got [2]"),
    ("int8_linear", {"scale_out": floats(1).double()}, "scale_out must be torch.float32, got torch.float64"),
    ("int8_linear", {"bias": floats(2)}, "bias must have shape [3], got [2]"),
    ("int8_linear", {"bias": floats(3).half()}, "bias must be torch.float32, got torch.float16"),
    (
        "int8_linear",
        {"x": codes(1, 133145), "weight": codes(3, 133145)},
        "K = 133145 could overflow int32; at most 133144",
    ),
    (
        "int4_progressive_linear",
        {"grid": torch.ones(3, 3, dtype=torch.uint8)},
        "grid has 3 groups, which do not divide K = 8",
    ),
    ("int4_progressive_linear", {"grid": codes(3, 2)}, "grid must be torch.uint8, got torch.int8"),
    ("int4_progressive_linear", {"weight_scale": floats(1)}, "weight_scale must have shape [3], got [1]"),
    ("int4_linear", {"packed": codes(3, 4)}, "packed must be torch.uint8, got torch.int8"),
    ("int4_linear", {"packed": codes(3, 5).view(torch.uint8)}, "packed must have shape [any, 4], got [3, 5]"),
    ("int4_linear", {"weight_scale": floats(3, 3)}, "weight_scale has 3 groups, which do not divide K = 8"),
    (
        "int4_linear",
        {"x_scale": floats(8)},
        "x_scale must have shape [1] (static) or [2, 1] (per token), got [8]",
    ),
    ("float_linear", {"x": codes(2, 8)}, "x must be floating point, got torch.int8"),
    (
        "float_linear",
        {"weight": codes(3, 8).int()},
        "weight must be torch.int8 or torch.uint8, got torch.int32",
    ),
    (
        "float_linear",
        {"scale": None},
        "codes have a scale and a float weight has none; got torch.uint8 and no scale",
    ),
    ("float_linear", {"weight": floats(3, 8)}, "got torch.float32 and a scale"),
    ("float_linear", {"weight": codes(3, 8), "scale": floats(3)}, "belong to packed int4 codes, torch.uint8"),
    (
        "float_linear",
        {"weight": codes(3, 8), "scale": floats(2), "zero_point": None},
        "scale must have shape [1] or [3], got [2]",
    ),
    (
        "float_linear",
        {"weight": floats(3, 7), "scale": None, "zero_point": None},
        "weight must have shape [any, 8], got [3, 7]",
    ),
    ("float_linear", {"grid": torch.ones(3, 2, dtype=torch.uint8)}, "grid has zero points of its own"),
    (
        "float_linear",
        {"grid": torch.ones(3, 2, dtype=torch.uint8), "zero_point": None},
        "scale must have shape [3], got [3, 2]",
    ),
    ("float_linear", {"grid": codes(3, 2), "zero_point": None}, "grid must be torch.uint8, got torch.int8"),
    ("float_linear", {"zero_point": codes(3, 1)}, "zero_point must have shape [3, 2], got [3, 1]"),
    ("float_linear", {"zero_point": floats(3, 2)}, "zero_point must be torch.int8, got torch.float32"),
    ("float_linear", {"scale": floats(3, 2).double()}, "scale must be torch.float32, got torch.float64"),
    ("float_linear", {"scale": floats(3, 3)}, "scale has 3 groups, which do not divide K = 8"),
    (
        "float_linear",
        {"weight": codes(3, 5).view(torch.uint8)},
        "weight must have shape [any, 4], got [3, 5]",
    ),
    ("float_linear", {"scale_out": floats(2)}, "scale_out must have shape [1] or [3], got [2]"),
    ("float_linear", {"bias": floats(2)}, "bias must have shape [3], got [2]"),
    ("float_linear", {"bias": floats(3).half()}, "bias must be torch.float32, got torch.float16"),
    ("mixed_linear", {"x": codes(2, 7)}, "x must be floating point, got torch.int8"),
    ("mixed_linear", {"order": torch.arange(7)}, "order must be torch.int32, got torch.int64"),
    ("mixed_linear", {"x": floats(2, 8)}, "order must have shape [8], got [7]"),
    ("mixed_linear", {"packed": codes(3, 2)}, "packed must be torch.uint8, got torch.int8"),
    ("mixed_linear", {"packed": codes(3, 3).view(torch.uint8)}, "K = 7 must be the 6 channels of packed"),
    ("mixed_linear", {"weight_scale": floats(3, 3)}, "the 4 channels of packed, which 3 groups must divide"),
    ("mixed_linear", {"weight_scale": floats(3, 0)}, "which 0 groups must divide"),
    ("mixed_linear", {"outliers": codes(3, 2)}, "and the 2 outliers"),
    ("mixed_linear", {"outliers": codes(2, 3)}, "outliers must have shape [3, any], got [2, 3]"),
    ("mixed_linear", {"outliers": floats(3, 3)}, "outliers must be torch.int8, got torch.float32"),
    ("mixed_linear", {"outlier_scale": floats(2)}, "outlier_scale must have shape [3], got [2]"),
    ("mixed_linear", {"weight_scale": floats(3, 2).half()}, "weight_scale must be torch.float32"),
    ("mixed_linear", {"bits": 9}, "bits must be 2 to 8, got 9"),
    ("mixed_linear", {"clip": 0.0}, "clip must be above 0 and at most 1, got 0.0"),
    ("mixed_linear", {"clip": 1.5}, "clip must be above 0 and at most 1, got 1.5"),
    ("mixed_linear", {"bias": floats(2)}, "bias must have shape [3], got [2]"),
    ("mixed_linear", {"scale_out": floats(2)}, "scale_out must have shape [1] or [3], got [2]"),
    ("outlier_linear", {"x": codes(2, 8)}, "x must be floating point, got torch.int8"),
    (
        "outlier_linear",
        {"threshold": 0.0},
        "threshold must be above 0, got 0.0; without outliers use int8_linear",
    ),
    ("outlier_linear", {"threshold": float("nan")}, "threshold must be above 0, got nan"),
    ("outlier_linear", {"weight": codes(3, 7)}, "weight must have shape [any, 8], got [3, 7]"),
    ("outlier_linear", {"weight_scale": floats(2)}, "weight_scale must have shape [1] or [3], got [2]"),
    ("outlier_linear", {"bias": floats(2)}, "bias must have shape [3], got [2]"),
    ("causal_conv1d", {"x": floats(2, 5)}, "x must have shape [any, any, any], got [2, 5]"),
    ("causal_conv1d", {"x": floats(2, 0, 3)}, "x has no tokens; pass at least one"),
    ("causal_conv1d", {"weight": floats(4, 4)}, "weight must have shape [3, any], got [4, 4]"),
    ("causal_conv1d", {"state": floats(2, 3, 3)}, "state must have shape [2, 3, 4], got [2, 3, 3]"),
    ("causal_conv1d", {"state": codes(2, 3, 4)}, "state must be torch.float32, got torch.int8"),
    ("causal_conv1d", {"x": codes(2, 5, 3), "state": codes(2, 3, 4)}, "x is torch.int8 and has no scale"),
    ("causal_conv1d", {"x_scale": floats(1)}, "x has a scale and must be torch.int8, got torch.float32"),
    ("causal_conv1d", {"weight": codes(3, 4)}, "weight is torch.int8 and has no scale"),
    (
        "causal_conv1d",
        {"weight": floats(3, 4).double()},
        "weight must be torch.float16 or torch.float32, got",
    ),
    (
        "causal_conv1d",
        {"x": floats(2, 5, 3).half(), "state": floats(2, 3, 4).half()},
        "x must be torch.float32 or",
    ),
    ("causal_conv1d", {"bias": floats(4)}, "bias must have shape [3], got [4]"),
    ("causal_conv1d", {"scale_out": floats(5)}, "scale_out must have shape [1] or [3], got [5]"),
    ("ssd", {"x": floats(2, 5, 12)}, "x must have shape [any, any, any, any], got [2, 5, 12]"),
    ("ssd", {"x": floats(2, 0, 4, 3)}, "x has no tokens"),
    ("ssd", {"B": floats(2, 4, 2, 6)}, "B must have shape [2, 5, any, any], got [2, 4, 2, 6]"),
    ("ssd", {"C": floats(2, 5, 2, 7)}, "C must have shape [2, 5, 2, 6], got [2, 5, 2, 7]"),
    ("ssd", {"B": floats(2, 5, 3, 6), "C": floats(2, 5, 3, 6)}, "3 groups of B and C do not divide 4 heads"),
    ("ssd", {"dt": floats(2, 5, 1)}, "dt must have shape [2, 5, 4], got [2, 5, 1]"),
    ("ssd", {"D": floats(12)}, "D must have shape [4], got [12]"),
    ("ssd", {"dt_bias": floats(4).double()}, "dt_bias must be torch.float32, got torch.float64"),
    ("ssd", {"A": floats(4).half()}, "A must be torch.float32 or torch.float64, got torch.float16"),
    ("ssd", {"x": codes(2, 5, 4, 3)}, "x is torch.int8 and has no scale; pass its scale or a float tensor"),
    ("ssd", {"B": floats(2, 5, 2, 6).half()}, "B must be torch.float32, got torch.float16"),
    ("ssd", {"dt_scale": floats(1)}, "dt has a scale and must be torch.int8, got torch.float32"),
    ("ssd", {"x": codes(2, 5, 4, 3), "x_scale": floats(4)}, "x_scale must have shape [1] or [12], got [4]"),
    ("ssd", {"state": floats(2, 4, 6, 3)}, "state must have shape [2, 4, 3, 6], got [2, 4, 6, 3]"),
    (
        "ssd",
        {"state": floats(2, 4, 3, 6).double()},
        "state must be torch.float32 or torch.float16 or torch.int8",
    ),
    ("ssd", {"state": codes(2, 4, 3, 6), "interval": 2}, "an int8 state has a scale and no other has"),
    (
        "ssd",
        {"state_scale": floats(1, 1, 1)},
        "an int8 state has a scale and no other has; got torch.float32",
    ),
    (
        "ssd",
        {"state": floats(2, 4, 3, 6).half()},
        "interval is positive for a reduced state and 0 else; got 0",
    ),
    ("ssd", {"interval": 3}, "interval is positive for a reduced state and 0 else; got 3 for torch.float32"),
    (
        "ssd",
        {"state": codes(2, 4, 3, 6), "state_scale": floats(4, 3), "interval": 2},
        "state_scale must be broadcastable to [4, 3, 6], got [4, 3]",
    ),
    (
        "ssd",
        {"state": codes(2, 4, 3, 6), "state_scale": floats(1, 1, 1).half(), "interval": 2},
        "state_scale must be torch.float32, got torch.float16",
    ),
    ("selective_scan", {"x": floats(2, 0, 4)}, "x has no tokens"),
    ("selective_scan", {"A": floats(4)}, "A must have shape [4, any], got [4]"),
    ("selective_scan", {"dt": floats(2, 5, 1)}, "dt must have shape [2, 5, 4], got [2, 5, 1]"),
    ("selective_scan", {"B": floats(2, 5, 4)}, "B must have shape [2, 5, 6], got [2, 5, 4]"),
    ("selective_scan", {"D": floats(6)}, "D must have shape [4], got [6]"),
    ("selective_scan", {"C": floats(2, 5, 6).double()}, "C must be torch.float32, got torch.float64"),
    ("selective_scan", {"state": floats(2, 4, 5)}, "state must have shape [2, 4, 6], got [2, 4, 5]"),
    ("selective_scan", {"interval": -1}, "interval is positive for a reduced state and 0 else; got -1"),
    ("rms_norm", {"x": codes(2, 6)}, "x must be floating point, got torch.int8"),
    ("rms_norm", {"weight": floats(1)}, "weight must have shape [6], got [1]"),
    ("rms_norm", {"weight": floats(6).double()}, "weight must be torch.float32, got torch.float64"),
    ("rms_norm", {"scale_out": floats(2)}, "scale_out must have shape [1] or [6], got [2]"),
    ("gated_rms_norm", {"y": codes(2, 6)}, "y must be torch.float32 or torch.float64, got torch.int8"),
    ("gated_rms_norm", {"z": floats(2, 5)}, "z must have shape [2, 6], got [2, 5]"),
    ("gated_rms_norm", {"z": codes(2, 6)}, "z is torch.int8 and has no scale"),
    ("gated_rms_norm", {"group_size": 4}, "group_size 4 does not divide 6 channels"),
    ("gated_rms_norm", {"weight": floats(3)}, "weight must have shape [6], got [3]"),
    ("gated_rms_norm", {"hadamard": True}, "no transform of size 6"),
    ("gate", {"y": floats(2, 6).half()}, "y must be torch.float32 or torch.float64, got torch.float16"),
    ("gate", {"z_scale": floats(6)}, "z has a scale and must be torch.int8, got torch.float32"),
    ("gate", {"z": codes(2, 6), "z_scale": floats(6, 1)}, "z_scale must have shape [1] or [6], got [6, 1]"),
    ("gate", {"hadamard": True}, "no transform of size 6"),
    ("hadamard", {"x": codes(2, 4)}, "x must be floating point, got torch.int8"),
    ("quantize_static", {"x": codes(2, 6)}, "x must be floating point, got torch.int8"),
    ("quantize_static", {"scale": floats(2, 1)}, "scale must have shape [1] or [6], got [2, 1]"),
    ("quantize_per_token", {"x": codes(2, 6)}, "x must be floating point, got torch.int8"),
    ("quantize_per_token", {"bits": 9}, "bits must be 2 to 8, got 9"),
    ("quantize_per_token", {"bits": 1}, "bits must be 2 to 8, got 1"),
    ("int4_embedding", {"ids": floats(2)}, "ids must be torch.int64 or torch.int32, got torch.float32"),
    ("int4_embedding", {"packed": codes(5, 3)}, "packed must be torch.uint8, got torch.int8"),
    ("int4_embedding", {"scale": floats(5)}, "scale must have shape [5, any], got [5]"),
    ("int4_embedding", {"scale": floats(4, 2)}, "scale must have shape [5, any], got [4, 2]"),
    ("int4_embedding", {"scale": floats(5, 4)}, "4 groups do not divide rows of 6 codes"),
    ("int8_embedding", {"ids": floats(2)}, "ids must be torch.int64 or torch.int32, got torch.float32"),
    ("int8_embedding", {"weight": floats(5, 4)}, "weight must be torch.int8, got torch.float32"),
    ("int8_embedding", {"scale": floats(4)}, "scale must have shape [1] or [5], got [4]"),
]


def test_every_op_refuses_something() -> None:
    assert {name for name, _, _ in REFUSED} == SOUND.keys() == SUITES.keys()


@pytest.mark.parametrize("name", SUITES)
def test_sound_arguments_are_taken(name: str) -> None:
    arguments = {k: v + 1 if "scale" in k and v is not None else v for k, v in SOUND[name].items()}
    SUITES[name].op(*arguments.values())


@pytest.mark.parametrize(
    ("name", "changed", "message"), REFUSED, ids=[f"{n}: {m[:60]}" for n, _, m in REFUSED]
)
def test_refused(name: str, changed: dict[str, Any], message: str) -> None:
    assert changed.keys() <= SOUND[name].keys()
    arguments = SOUND[name] | changed
    with pytest.raises(InputError, match=rf"^({name}|hadamard): .*{re.escape(message)}"):
        SUITES[name].op(*arguments.values())


@pytest.mark.parametrize("wrong", [-1, 7, 2**31])
def test_an_id_outside_the_table_is_no_row(wrong: int) -> None:
    """Not the row counted from the end either; the values are data, so it is PyTorch that refuses them."""
    with pytest.raises(IndexError):
        SUITES["int8_embedding"].op(torch.tensor([wrong]), codes(7, 3), floats(7))
