"""docs/speed.md: where each measurement is shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
import render_speed

from ssmquant.bench.measure import measure
from ssmquant.bench.workload import Workload


@pytest.fixture
def results(make: Any, make_probe: Any) -> dict[str, Any]:
    """Files of each kind."""
    known = {
        "weight_bytes": 10**8,
        "read_bytes": 10**8,
        "state_bytes": 0,
        "token_operations": 10**9,
        "head_operations": 0,
    }
    workload = Workload(prompt_len=512, gen_len=100, repeats=1)
    ours, peer = make("ours", (1, 1), (0.5, 0.25), **known), make("peer", (1, 1), (2, 1.5))
    beside = measure([ours, peer], make_probe(peak=2048.0), workload).to_json()
    grown = measure([make("long", (1, 1), (0.5, 1))], make_probe(), Workload(1000, 100, repeats=1)).to_json()
    del grown["ratios"]
    keys = ("decode_tps_alone", "decode_kept", "prefill_kept")
    kept = {key: {"p20": 0.5, "p50": 0.6, "p80": 0.7} for key in keys}
    disturbed = {"environment": beside["environment"], "busy": [{"name": "ours", "recipe": "r", **kept}]}
    row = {"name": "ours", "recipe": "r", "command": "ssmquant eval ours-r", "tokens": 49104}
    read = {"environment": beside["environment"], "evaluation": row | {"seconds": kept["decode_kept"]}}
    files = {"ours-w8a8": beside, "growth-long": grown, "busy-ours": disturbed, "eval-ours": read}
    loaded: dict[str, Any] = json.loads(json.dumps(files))
    return loaded


def test_every_measurement_has_its_place(results: dict[str, Any]) -> None:
    page = render_speed.document(results)
    assert (
        "| ours `recipe` | peer `recipe` | 400 : 66.7 | **6 [6, 6]** | 1,024 : 256 | **4 [4, 4]** |" in page
    )
    # 100 steps of 1e8 bytes in 0.25 s beside 1 GB/s; 512e9 operations in 0.5 s beside 2048e9.
    assert "| ours `recipe` | 400 [400, 400] | 1 | 4000 % | 1,024 [1,024, 1,024] | 2,048 | 50 % |" in page
    assert "| 1,000 | 500 [500, 500] | 500 | 10 [10, 10] |" in page
    assert "| ours `r` | 0.6 [0.5, 0.7] |" in page
    assert "| ours `r` | `ssmquant eval ours-r` | 49,104 | 0.6 [0.5, 0.7] |" in page
    assert "| 310 |" in page  # 1.1 * 1e8 bytes and 200 MB
