"""Verdicts on claims, and the measurement of outliers that some of them read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import claims
import outliers
import pytest
import torch

HERE = {"cpu": "some cpu", "gpu": None}


def verdicts(text: str, files: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (model, verdict) of each finding about the one claim that has this text in it."""
    (claim,) = [claim for claim in claims.CLAIMS if text in claim.text]
    return [(found.model, str(found.verdict)) for found in claim.find(files)]


def recipes(**measured: tuple[float, float]) -> dict[str, Any]:
    """Return a comparison: KL and perplexity ratio of each recipe."""
    rows = [
        {
            "recipe": name.replace("_", "-"),
            "bytes": 100 if name == "fp16" else 40,
            "domains": {"en": {"kl": kl, "kl_ci": [kl * 0.9, kl * 1.1], "ppl_ratio": ratio}},
        }
        for name, (kl, ratio) in measured.items()
    ]
    return {"environment": HERE, "rows": rows}


def test_a_claim_that_nothing_measures_says_what_would() -> None:
    text = claims.document({})
    assert text.count("| not measured yet |") == len(claims.CLAIMS) - 1
    assert text.count("| not testable here |") == 1
    assert "would be measured by `outliers.py`" in text


def test_quality_is_read_from_comparisons() -> None:
    found = {"compare-m": recipes(fp16=(0.0, 1.0), quamba_w8a8=(0.01, 1.02), ssmquant_w8a8=(0.001, 1.1))}
    assert verdicts("Pure static int8", found) == [
        ("m", "does not hold: it is better"),
        ("m", "does not hold"),
    ]
    assert verdicts("quarter of the memory", found) == [("m", "does not hold")]
    quarter = {"compare-m": recipes(fp16=(0.0, 1.0), quamba_w8a8=(0.01, 1 / 0.96))}
    quarter["compare-m"]["rows"][1]["bytes"] = 25
    assert verdicts("Pure static int8", quarter) == [("m", "holds")]
    assert verdicts("quarter of the memory", quarter) == [("m", "holds")]


@pytest.mark.parametrize(
    ("kl", "verdict"), [(0.005, "holds"), (0.0095, "does not hold"), (0.02, "does not hold")]
)
def test_nearer_means_apart_by_the_intervals(kl: float, verdict: str) -> None:
    table = recipes(quamba_w8a8=(0.01, 1.0), other=(kl, 1.0))
    table["rows"][1]["recipe"] = "quamba2-w8a8+ssm_state=float16"
    assert verdicts("Piecewise scales", {"compare-m": table}) == [("m", verdict)]


@pytest.mark.parametrize(
    ("milliseconds", "verdict"),
    [(10.5, "does not hold: it is better"), (11.2, "holds"), (12.0, "does not hold")],
)
def test_latency_is_of_rows_that_differ_in_the_recipe_alone(milliseconds: float, verdict: str) -> None:
    common = {"name": "m", "device": "cpu", "threads": 1, "batch": 1, "prompt_len": 8}
    rows = [
        common | {"recipe": "fp16", "tpot_ms": {"p50": 10.0}},
        common | {"recipe": "llm-int8", "tpot_ms": {"p50": milliseconds}},
        common | {"recipe": "llm-int8", "tpot_ms": {"p50": 99.0}, "threads": 2},  # no fp16 to compare with
    ]
    files = {"cpu-m": {"environment": HERE, "rows": rows}}
    assert verdicts("`llm-int8`, a mixed-precision", files) == [("m", verdict)]


def test_outliers_have_other_ranges_in_a_transformer() -> None:
    def site(name: str, ratio: float) -> dict[str, Any]:
        return {
            "site": name,
            "max_over_mean": ratio,
            "beyond": {"5": 0.01, "10": 0.001},
            "documents_within_10_percent": 0.5,
            "static_range_holds": {"elements": 0.97, "tokens": 0.9},
        }

    files = {
        "outliers-mamba": {
            "environment": HERE,
            "sites": [site("layers.0.hidden", 8), site("layers.0.z", 99)],
        },
        "outliers-llama": {"environment": HERE, "sites": [site("layers.0.self_attn.q_proj", 8)]},
    }
    assert verdicts("milder", files) == [("mamba", "does not hold")]  # 8 is not below 8
    assert verdicts("times the mean", files) == [("llama", "does not hold"), ("mamba", "holds")]
    assert verdicts("beyond 5 σ", files) == [("llama", "does not hold"), ("mamba", "holds")]
    assert verdicts("±10 %", files) == [("llama", "does not hold"), ("mamba", "does not hold")]
    assert verdicts("95-99 %", files) == [("llama", "holds"), ("mamba", "holds")]


class Recorded:
    """A model of one site that holds what the ids say: a token is a row of the given values."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.sites = {"site": torch.nn.Identity()}

    def run(self, ids: torch.Tensor) -> None:
        self.sites["site"](self.values[ids])

    watched = outliers.Subject.watched


def test_reach_is_measured_on_the_values_themselves() -> None:
    values = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, -8.0]])
    domains = {"a": torch.tensor([[0, 0], [1, 2]]), "b": torch.tensor([[0, 1]])}
    calls: list[tuple[int, int]] = []
    found = outliers.measure(Recorded(values), domains, lambda *call: calls.append(call))["site"].to_json()
    assert calls[-1] == (6, 6)
    seen = values[torch.cat([ids.flatten() for ids in domains.values()])].double()
    assert found["absmax"] == 8
    assert found["mean_abs"] == pytest.approx(float(seen.abs().mean()))
    assert found["sigma"] == pytest.approx(float(seen.square().mean().sqrt()))
    assert found["max_over_mean"] == pytest.approx(8 / float(seen.abs().mean()))
    assert found["channel_max_over_median"] == pytest.approx(
        8 / 2
    )  # of two channels, the lower is the median
    assert found["outlier_columns"] == 0.5
    assert found["beyond"]["3"] == pytest.approx(1 / seen.numel())
    assert found["beyond"]["5"] == 0
    # Ranges are fitted to the first document of each domain (up to 2); the second of domain a has one value beyond.
    assert found["static_range_holds"] == {"elements": 3 / 4, "tokens": 1 / 2}
    assert found["documents_within_10_percent"] == pytest.approx(1 / 3)  # largest: 1, 8, 2
