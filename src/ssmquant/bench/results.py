"""What comes out of a measurement: a row for each contestant, ratios between them, the limits of the machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ssmquant.bench.contestant import Facts
from ssmquant.bench.workload import Times, Workload

__all__ = ["Measurement", "Percentiles", "Ratio", "Row"]


class Percentiles(NamedTuple):
    """Of the repetitions."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Percentiles:
        """Return the percentiles of some values."""
        return cls(*np.percentile(values, [20, 50, 80]).tolist())


@dataclass(frozen=True)
class Row:
    """One contestant.

    Attributes:
        facts: what it is.
        device, threads: where it ran.
        workload: what it did.
        times: of each repetition.
        read_gbps: read bandwidth probed beside each repetition.
        int8_gops: integer peak probed beside each repetition; None where it cannot be probed.
        peak_bytes: most memory of its process.
    """

    facts: Facts
    device: str
    threads: int
    workload: Workload
    times: tuple[Times, ...]
    read_gbps: tuple[float, ...]
    int8_gops: tuple[float, ...] | None
    peak_bytes: int

    @property
    def ttft_ms(self) -> Percentiles:
        """Time to the first token."""
        return Percentiles.of([1e3 * t.prefill for t in self.times])

    @property
    def tpot_ms(self) -> Percentiles:
        """Time per output token, the mean over the steps of a repetition."""
        return Percentiles.of([1e3 * t.decode / self.workload.gen_len for t in self.times])

    @property
    def ttlt_ms(self) -> Percentiles:
        """Time to the last token."""
        return Percentiles.of([1e3 * (t.prefill + t.decode) for t in self.times])

    @property
    def prefill_tps(self) -> Percentiles:
        """Tokens a second read by the prefill, all sequences together."""
        tokens = self.workload.batch * self.workload.prompt_len
        return Percentiles.of([tokens / t.prefill for t in self.times])

    @property
    def decode_tps(self) -> Percentiles:
        """Tokens a second made by the steps, all sequences together."""
        tokens = self.workload.batch * self.workload.gen_len
        return Percentiles.of([tokens / t.decode for t in self.times])

    @property
    def bandwidth_share(self) -> float | None:
        """Bytes that a step must read, over what could have been read in its time; median."""
        count = self.facts.step_bytes(self.workload.batch)
        if count is None:
            return None
        steps = self.workload.gen_len
        shares = [
            count * steps / t.decode / (1e9 * g) for t, g in zip(self.times, self.read_gbps, strict=True)
        ]
        return float(np.median(shares))

    @property
    def compute_share(self) -> float | None:
        """Integer operations of the prefill's linear layers, over what could have been made in its time; median."""
        operations = self.facts.prefill_operations(self.workload)
        if operations is None or self.int8_gops is None:
            return None
        shares = [operations / t.prefill / (1e9 * g) for t, g in zip(self.times, self.int8_gops, strict=True)]
        return float(np.median(shares))

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        facts = self.facts
        return {
            "name": facts.name,
            "recipe": facts.recipe,
            "engine": facts.engine,
            "engine_reason": facts.engine_reason,
            "device": self.device,
            "threads": self.threads,
            "batch": self.workload.batch,
            "prompt_len": self.workload.prompt_len,
            "gen_len": self.workload.gen_len,
            "repeats": len(self.times),
            "ttft_ms": self.ttft_ms._asdict(),
            "tpot_ms": self.tpot_ms._asdict(),
            "ttlt_ms": self.ttlt_ms._asdict(),
            "prefill_tps": self.prefill_tps.p50,
            "decode_tps": self.decode_tps.p50,
            "prefill_tps_spread": self.prefill_tps._asdict(),
            "decode_tps_spread": self.decode_tps._asdict(),
            "parameters": facts.parameters,
            "weight_bytes": facts.weight_bytes,
            "state_bytes": facts.state_bytes,
            "peak_bytes": self.peak_bytes,
            "base_bytes": facts.base_bytes,
            "load_seconds": facts.load_seconds,
            "bandwidth_share": self.bandwidth_share,
            "compute_share": self.compute_share,
        }


class Ratio(NamedTuple):
    """How many times as fast the first row is as another: from pairs of repetitions that ran side by side."""

    other: Facts
    prefill: Percentiles
    decode: Percentiles

    @classmethod
    def of(cls, first: Row, other: Row) -> Ratio:
        """Return the ratios of two rows, repetition by repetition."""
        pairs = list(zip(first.times, other.times, strict=True))
        return cls(
            other.facts,
            Percentiles.of([b.prefill / a.prefill for a, b in pairs]),
            Percentiles.of([b.decode / a.decode for a, b in pairs]),
        )


@dataclass(frozen=True)
class Measurement:
    """Everything of one run.

    Attributes:
        environment: machine and versions.
        probe: how the limits were measured, and the median of each.
        rows: the model in question first, then its peers.
    """

    environment: dict[str, Any]
    probe: dict[str, Any]
    rows: tuple[Row, ...]

    @property
    def ratios(self) -> list[Ratio]:
        """Speed of the first row relative to each other one."""
        first, *others = self.rows
        return [Ratio.of(first, other) for other in others]

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        first = self.rows[0].facts
        return {
            "environment": self.environment,
            "probe": self.probe,
            "rows": [row.to_json() for row in self.rows],
            "ratios": [
                {
                    "name": first.name,
                    "recipe": first.recipe,
                    "against": ratio.other.name,
                    "against_recipe": ratio.other.recipe,
                    "pairs": len(self.rows[0].times),
                    "prefill": ratio.prefill._asdict(),
                    "decode": ratio.decode._asdict(),
                }
                for ratio in self.ratios
            ],
        }
