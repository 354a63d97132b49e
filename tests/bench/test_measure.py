"""Turns, ratios and shares, with contestants whose every number is chosen."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from ssmquant.bench.measure import measure
from ssmquant.bench.results import Measurement
from ssmquant.bench.tables import tables
from ssmquant.bench.workload import Workload
from ssmquant.errors import SsmquantError

WORKLOAD = Workload(prompt_len=10, gen_len=4, batch=2, repeats=3)
WARM_UP = (99.0, 99.0)


@pytest.fixture
def measurement(make: Any, make_probe: Any) -> Measurement:
    ours = make(
        "ours",
        WARM_UP,
        (1.0, 2.0),
        (2.0, 4.0),
        (4.0, 8.0),
        read_bytes=3 * 10**8,
        state_bytes=10**8,
        token_operations=10**9,
        head_operations=5 * 10**9,
        engine_reason="the extension is missing",
    )
    # Twice as long as ours in the first repetition, three and four times in the next.
    peer = make("peer", WARM_UP, (2.0, 4.0), (6.0, 12.0), (16.0, 32.0))
    return measure([ours, peer], make_probe(), WORKLOAD)


def test_contestants_run_in_turns_beside_the_probe_and_are_ended(
    make: Any, make_probe: Any, log: Any
) -> None:
    a, b = (make(name, WARM_UP, (1, 1), (1, 1), (1, 1)) for name in "ab")
    measure([a, b], make_probe(), WORKLOAD)
    turns = ["probe", "run a", "run b", "probe", "run b", "run a", "probe", "run a", "run b"]
    assert log == ["start a", "run a", "start b", "run b", *turns, "close b", "close a"]
    assert a.workloads == [WORKLOAD.warm_up(), *[WORKLOAD] * 3]
    assert WORKLOAD.warm_up() == Workload(10, 1, 2, 1)


def test_everyone_is_ended_when_one_fails(make: Any, make_probe: Any, log: Any) -> None:
    a, b = make("a", WARM_UP), make("b")

    def fail() -> None:
        raise SsmquantError("does not load")

    b.start = fail
    with pytest.raises(SsmquantError, match="does not load"):
        measure([a, b], make_probe(), WORKLOAD)
    assert log[-2:] == ["close b", "close a"]


def test_times_are_medians_a_token_and_ratios_are_of_pairs(measurement: Measurement) -> None:
    ours = measurement.rows[0]
    assert ours.ttft_ms.p50 == 2000
    assert ours.tpot_ms.p50 == 1000
    assert ours.ttlt_ms.p50 == 6000
    assert ours.prefill_tps.p50 == 2 * 10 / 2
    assert ours.decode_tps.p50 == 2 * 4 / 4
    (ratio,) = measurement.ratios
    assert ratio.prefill == ratio.decode == pytest.approx((2.4, 3.0, 3.6))


def test_shares_are_of_the_limits_beside_each_repetition(measurement: Measurement, make: Any) -> None:
    ours, peer = measurement.rows
    # A step reads 3e8 of weights and twice 1e8 of state; repetition i takes 2^i / 2 s a step beside i GB/s.
    assert ours.bandwidth_share == pytest.approx(sorted([0.5 / 0.5, 0.5 / 1 / 2, 0.5 / 2 / 3])[1])
    # Two sequences of 10 tokens and a head: 30e9 operations in 2 s, beside 100e9 a second.
    assert ours.compute_share == pytest.approx(30 / 2 / 100)
    assert peer.bandwidth_share is None
    assert peer.compute_share is None


def test_the_buffer_is_as_large_as_what_a_step_reads(make: Any, make_probe: Any) -> None:
    probe = make_probe()
    ours = make("a", WARM_UP, (1, 1), read_bytes=10**8, state_bytes=10**7)
    measure([ours], probe, Workload(1, 1, batch=2, repeats=1))
    assert probe.counts == [10**8 + 2 * 10**7]
    probe = make_probe(peak=None)
    found = measure([make("a", WARM_UP, (1, 1))], probe, Workload(1, 1, repeats=1))
    assert probe.counts == [10**9]
    assert found.probe["int8_gops"] is None
    assert found.rows[0].compute_share is None


def test_json_has_the_fixed_keys(measurement: Measurement) -> None:
    content = json.loads(json.dumps(measurement.to_json()))
    assert content.keys() == {"environment", "probe", "rows", "ratios"}
    assert content["environment"].keys() >= {"cpu", "threads", "isa", "date"}
    assert content["environment"]["isa"] == "fakeisa"
    assert content["probe"] == {
        "read_gbps": 2.0,
        "int8_gops": 100.0,
        "how": "fake",
        "isa": "fakeisa",
        "threads": 1,
        "bytes": 5 * 10**8,
    }
    for row in content["rows"]:
        assert row.keys() >= {"name", "recipe", "device", "threads", "batch", "prompt_len", "gen_len"}
        assert row.keys() >= {
            "ttft_ms",
            "tpot_ms",
            "prefill_tps",
            "decode_tps",
            "weight_bytes",
            "state_bytes",
        }
        assert row.keys() >= {"peak_bytes", "bandwidth_share", "compute_share"}
        assert row["ttft_ms"].keys() == {"p20", "p50", "p80"}
    (ratio,) = content["ratios"]
    assert (ratio["name"], ratio["against"], ratio["pairs"]) == ("ours", "peer", 3)


def test_tables_say_everything_in_words(measurement: Measurement) -> None:
    console = Console(width=200, record=True, file=None)
    with console.capture() as capture:
        for table in tables(measurement):
            console.print(table)
    text = capture.get()
    assert "prompt 10, 4 steps, batch 2, 1 threads, cpu" in text
    assert "limits beside it (fake, fakeisa): 2.0 GB/s read, 100 int8 Gop/s" in text
    assert "3 [2.4, 3.6]" in text
    assert "ours recipe: the extension is missing" in text
    assert "25%" in text
    assert "15%" in text
    assert len(tables(measurement)) == 3
    alone = Measurement(measurement.environment, measurement.probe, measurement.rows[:1])
    assert len(tables(alone)) == 2
