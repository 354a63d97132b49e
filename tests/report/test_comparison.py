"""Keys of the JSON file, ranks and letters, and the tables made of them."""

from __future__ import annotations

import json

from ssmquant.report.comparison import Comparison
from ssmquant.report.tables import domain_table, mean_table, paired_table, summary_table

ROW = {
    *("recipe", "bits_weight", "bits_activation", "bytes", "state_bytes", "float_share", "prefill_rel"),
    *("decode_rel", "calibration_s", "domains"),
}
DOMAIN = {"tokens", "kl", "kl_ci", "top1", "ppl", "ppl_ref", "ppl_ratio", "ppl_ratio_ci"}
HOSTILE = "<b>$x_1|y.yaml"


def test_the_json_has_the_fixed_keys(comparison: Comparison) -> None:
    found = json.loads(json.dumps(comparison.to_json()))
    assert found.keys() >= {"environment", "model", "rows", "paired"}
    assert [row["recipe"] for row in found["rows"]] == [HOSTILE, "good", "same"]  # as asked for
    for row in found["rows"]:
        assert row.keys() >= ROW
        assert all(entry.keys() == DOMAIN for entry in row["domains"].values())
    assert {(p["a"], p["b"], p["domain"]) for p in found["paired"]} >= {("good", "same", "en")}
    assert all(pair.keys() == {"a", "b", "domain", "kl_diff", "ci", "p"} for pair in found["paired"])
    assert len(found["paired"]) == 3 * 2
    first = found["rows"][1]
    assert (first["prefill_rel"], first["bits_activation"], first["bytes"]) == (1.7, "mixed", 9_000_000)
    low, high = first["prefill_rel_p20_p80"]
    assert low < first["prefill_rel"] < high


def test_what_cannot_be_told_apart_shares_a_letter(comparison: Comparison) -> None:
    letters = comparison.letters
    assert letters["good"] == letters["same"] == "a"
    assert letters[HOSTILE] == "b"
    assert comparison.ranked[-1].recipe == HOSTILE


def test_tables_say_the_same_as_the_rows(comparison: Comparison) -> None:
    summary = summary_table(comparison)
    headings = [column.name for column in summary.columns]
    last = dict(zip(headings, summary.rows[-1], strict=True))
    assert last["recipe"] == HOSTILE
    assert last["group"] == "b"
    assert (last["MB"], last["state kB"], last["float"]) == ("7.00", "1.0", "25%")
    assert last["peak MB"] == "123"
    assert last["prefill ×"] == "1.50 [1.40, 1.70]*"  # no engine ran it, and it says so
    assert "stage by stage" in summary.note
    assert "prefill of 16 tokens, 4 steps, 2 repetitions" in summary.note
    assert len(domain_table(comparison).rows) == 3 * 2
    assert len(paired_table(comparison).rows) == 3 * 2
    results = {row[:2]: row[-1] for row in mean_table(comparison).rows}
    assert {results[pair] for pair in (("good", "same"), ("same", "good")) if pair in results} == {
        "no difference shown"
    }
    assert results["good", HOSTILE] == "good closer"
