"""From statistics to scales: which statistics each rule needs, and what it makes of them."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import float_model, quantised, texts

import ssmquant
from ssmquant.calibrate import calibrate
from ssmquant.data import calibration_windows
from ssmquant.errors import RecipeError
from ssmquant.numerics import scale_from_absmax
from ssmquant.ranges import needed
from ssmquant.scheme import FLOAT32, Granularity, RangeRule, TensorScheme


def test_each_rule_needs_its_statistics_and_no_others() -> None:
    schemes = {
        "absmax": TensorScheme(granularity=Granularity.PER_CHANNEL),
        "percentile": TensorScheme(range=RangeRule.PERCENTILE, percentile=99.9),
        "mse": TensorScheme(range=RangeRule.MSE),
        "group": TensorScheme(range=RangeRule.MSE, granularity=Granularity.PER_STATE_GROUP),
        "float": FLOAT32,
        "token": TensorScheme(granularity=Granularity.PER_TOKEN, dynamic=True),
    }
    assert needed(schemes) == {
        "absmax": ("absmax",),
        "percentile": ("absmax", "histogram"),
        "mse": ("absmax", "histogram"),
        "group": ("absmax", "channel-histogram"),
    }


def test_least_squares_ranges_are_those_of_the_calibration_text() -> None:
    source, model = (
        float_model("mamba2-two-groups"),
        quantised("mamba2-two-groups", "ssmquant-w8a8+residual=plain"),
    )
    windows = calibration_windows(str(texts()), source.tokenizer, samples=8, seqlen=64)
    found = dict(model.shell.activations())
    # In the first layer, whose input no transform has changed (up to float sums: the norm's gain is in the weights).
    needs = {"layers.0.B": ("absmax", "channel-histogram")}
    statistics = calibrate(source.shell, windows, needs)
    absmax = statistics.absmax("layers.0.B").view(2, -1).amax(dim=1)
    group = torch.arange(2).repeat_interleave(found["layers.0.B"].channels // 2)
    ranges = statistics.channel_histogram("layers.0.B").least_squares(absmax, group, 8)
    assert torch.allclose(found["layers.0.B"].scale, scale_from_absmax(ranges), rtol=1e-5)
    assert not torch.allclose(ranges.float(), absmax)  # so the rule is seen to do something


@pytest.mark.parametrize(
    ("rule", "granularity"),
    [("range: mse", "per-channel"), ("range: percentile, percentile: 99.9", "per-state-group")],
)
def test_a_rule_that_is_not_known_for_a_granularity_is_refused(
    rule: str, granularity: str, tmp_path: object
) -> None:
    path = f"{tmp_path}/mine.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            f"description: x\nsource: x\nschemes:\n  s: {{granularity: {granularity}, {rule}}}\n"
            "rules:\n  - {match: [layers.*.B], scheme: s}\n"
        )
    with pytest.raises(RecipeError, match=r"layers\.0\.B .*known for per-tensor"):
        ssmquant.plan(float_model("mamba2-two-groups"), path)
