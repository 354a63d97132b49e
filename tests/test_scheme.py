"""`TensorScheme`: JSON there and back, and every combination without a meaning refused in words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ssmquant.scheme import FLOAT32, Granularity, RangeRule, TensorScheme

SCHEMES: list[tuple[dict[str, Any], str]] = [
    ({}, "int8 per-tensor"),
    ({"granularity": "per-channel"}, "int8 per-channel"),
    ({"bits": 4, "granularity": "per-group", "group_size": 128}, "int4 per-group 128"),
    (
        {"bits": 4, "granularity": "per-group", "group_size": 32, "symmetric": False, "scale_dtype": "uint8"},
        "int4 per-group 32 progressive",
    ),
    ({"granularity": "per-token", "dynamic": True}, "int8 per-token dynamic"),
    ({"granularity": "per-token"}, "int8 per-token"),
    ({"granularity": "per-state-group"}, "int8 per-state-group"),
    ({"granularity": "per-head-group", "head_groups": 4, "channel_groups": 2}, "int8 per-head-group 4x2"),
    ({"range": "percentile", "percentile": 99.999}, "int8 per-tensor p99.999"),
    ({"range": "mse"}, "int8 per-tensor mse"),
    ({"granularity": "per-channel", "interval": 16}, "int8 per-channel every 16"),
    ({"kind": "float", "bits": 16, "interval": 16}, "float16 every 16"),
    ({"kind": "float", "bits": 16}, "float16"),
    ({"kind": "float", "bits": 32}, "float32"),
    ({"kind": "lut", "bits": 4, "granularity": "per-channel"}, "lut4 per-channel"),
    ({"granularity": "per-channel", "outlier_threshold": 6.0}, "int8 per-channel + float16 from 6"),
]

PER_GROUP = {"granularity": "per-group"}
PER_HEAD_GROUP = {"granularity": "per-head-group"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"kind": "float"}, "a float scheme has 16 or 32 bits, not 8"),
    ({"kind": "float", "bits": 24}, "a float scheme has 16 or 32 bits, not 24"),
    ({"bits": 16}, "codes have at most 8 bits, not 16"),
    ({"kind": "lut", "bits": 9}, "codes have at most 8 bits, not 9"),
    ({"bits": 1}, "greater than or equal to 2"),
    ({"bits": 64}, "less than or equal to 32"),
    ({"kind": "posit"}, "Input should be 'int', 'float' or 'lut'"),
    ({"granularity": "per-row"}, "'per-tensor', 'per-channel', 'per-token'"),
    (PER_GROUP, "group_size is missing in 'int8 per-group'"),
    ({"group_size": 128}, "group_size has no meaning here in 'int8 per-tensor 128'"),
    (PER_GROUP | {"group_size": 0}, "greater than or equal to 1"),
    (PER_HEAD_GROUP | {"channel_groups": 4}, "head_groups is missing in 'int8 per-head-group Nonex4'"),
    (PER_HEAD_GROUP | {"head_groups": 4}, "channel_groups is missing"),
    ({"head_groups": 4}, "head_groups has no meaning here"),
    ({"channel_groups": 4}, "channel_groups has no meaning here"),
    (
        {"granularity": "per-state-group", "head_groups": 4, "channel_groups": 4},
        "head_groups has no meaning here",
    ),
    ({"scale_dtype": "uint8"}, "scale_dtype uint8 goes with asymmetric int4 codes per-group"),
    ({"percentile": 99.0}, "percentile has no meaning here"),
    ({"range": "mse", "percentile": 99.0}, "percentile has no meaning here"),
    ({"range": "percentile", "percentile": 50.0}, "greater than 50"),
    ({"range": "percentile", "percentile": 100.1}, "less than or equal to 100"),
    ({"range": "entropy"}, "'absmax', 'percentile' or 'mse'"),
    ({"dynamic": True}, "a dynamic scale is per-token, not per-tensor"),
    ({"dynamic": True, "granularity": "per-channel"}, "a dynamic scale is per-token, not per-channel"),
    ({"interval": 0}, "greater than or equal to 1"),
    ({"outlier_threshold": 6.0}, "outlier_threshold goes with symmetric int8 codes per-channel"),
    (
        {"granularity": "per-channel", "bits": 4, "outlier_threshold": 6.0},
        "outlier_threshold goes with symmetric int8 codes per-channel",
    ),
    ({"granularity": "per-channel", "outlier_threshold": 0.0}, "greater than 0"),
    ({"scale_dtype": "float16"}, "Input should be 'float32'"),
    ({"bit": 4}, "Extra inputs are not permitted"),
    ({"group-size": 4}, "Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("fields", "short"), SCHEMES)
def test_words_for_tables(fields: dict[str, Any], short: str) -> None:
    assert TensorScheme(**fields).short() == short


@pytest.mark.parametrize(("fields", "short"), SCHEMES)
def test_json_there_and_back(fields: dict[str, Any], short: str) -> None:
    scheme = TensorScheme(**fields)
    for exclude in (True, False):
        text = json.dumps(scheme.model_dump(mode="json", exclude_defaults=exclude))
        assert TensorScheme.model_validate(json.loads(text)) == scheme
    assert json.loads(scheme.model_dump_json(exclude_defaults=True)) == fields


@given(
    bits=st.integers(2, 8),
    granularity=st.sampled_from(Granularity),
    sizes=st.tuples(*[st.integers(1, 4096)] * 3),
    range=st.sampled_from(RangeRule),
    percentile=st.floats(50, 100, exclude_min=True),
    interval=st.none() | st.integers(1, 1000),
    dynamic=st.booleans(),
)
def test_any_sound_scheme_survives_json(
    bits: int, granularity: Granularity, sizes: tuple[int, int, int], range: RangeRule, percentile: float,
    interval: int | None, dynamic: bool,
) -> None:  # fmt: skip
    piecewise = granularity is Granularity.PER_HEAD_GROUP
    scheme = TensorScheme(
        bits=bits,
        granularity=granularity,
        group_size=sizes[0] if granularity is Granularity.PER_GROUP else None,
        head_groups=sizes[1] if piecewise else None,
        channel_groups=sizes[2] if piecewise else None,
        range=range,
        percentile=percentile if range is RangeRule.PERCENTILE else None,
        interval=interval,
        dynamic=dynamic
        and granularity is Granularity.PER_TOKEN
        and range is RangeRule.ABSMAX
        and not interval,
    )
    again = TensorScheme.model_validate_json(scheme.model_dump_json(exclude_defaults=True))
    assert again == scheme
    assert hash(again) == hash(scheme)


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        TensorScheme(**fields)
    assert message in str(refusal.value)


def test_a_percentile_rule_without_percentile_is_refused() -> None:
    with pytest.raises(ValidationError, match="percentile is missing"):
        TensorScheme(range=RangeRule.PERCENTILE)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "float", "bits": 16, "granularity": "per-channel"},
        {"kind": "float", "bits": 16, "granularity": "per-token", "dynamic": True},
        {"kind": "float", "bits": 16, "range": "mse"},
        {"kind": "float", "bits": 16, "symmetric": False},
        {"granularity": "per-token", "dynamic": True, "range": "mse"},
        {"granularity": "per-token", "dynamic": True, "interval": 16},
    ],
)
def test_what_means_nothing_together_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="has no meaning"):
        TensorScheme(**fields)


def test_a_scheme_does_not_change() -> None:
    scheme = TensorScheme()
    with pytest.raises(ValidationError, match="frozen"):
        scheme.bits = 4  # type: ignore[misc]
    assert scheme.bits == 8


def test_equal_schemes_are_one_key() -> None:
    assert {TensorScheme(): 1}[TensorScheme(bits=8, granularity=Granularity.PER_TENSOR)] == 1
    assert TensorScheme() != TensorScheme(granularity=Granularity.PER_CHANNEL)


@pytest.mark.parametrize(
    ("fields", "is_float", "is_static_int"),
    [
        ({}, False, True),
        ({"granularity": "per-token", "dynamic": True}, False, False),
        ({"kind": "float", "bits": 32}, True, False),
        ({"kind": "lut", "bits": 4, "granularity": "per-channel"}, False, False),
    ],
)
def test_kinds(fields: dict[str, Any], is_float: bool, is_static_int: bool) -> None:
    scheme = TensorScheme(**fields)
    assert (scheme.is_float, scheme.is_static_int) == (is_float, is_static_int)


def test_the_default_of_a_site_is_float32() -> None:
    assert TensorScheme(kind="float", bits=32) == FLOAT32
    assert FLOAT32.short() == "float32"
