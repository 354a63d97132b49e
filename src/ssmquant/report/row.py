"""`Row`: one recipe on one model: what it costs and how far it is from the float model.

The numbers of every document are kept, so that stored rows can be tested against each other later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ssmquant.eval.grouping import over_domains
from ssmquant.eval.results import Divergence, DomainScores, ModelScores
from ssmquant.eval.statistics import Array, Interval, mean_interval
from ssmquant.report.timing import Relative

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """One recipe, measured.

    Attributes:
        recipe: its reference, as asked for.
        bits_weight, bits_activation, bytes_at_rest, state_bytes, float_share: see `ssmquant.footprint`.
        calibration_s: seconds to gather the statistics that it uses (counted for each recipe that shares them, as they
            were when they were gathered), to transform and to choose codes.
        peak_bytes: most memory of a process that loads and runs it, see `ssmquant.report.memory`.
        prefill, decode: time over that of the float model, see `ssmquant.report.timing`.
        by_stages: why no engine for this device runs it, so that its times are of one op after another; else empty.
        measured: when, UTC, ISO 8601.
        scores: divergence from the float model, by domain.
    """

    recipe: str
    bits_weight: float
    bits_activation: int | str
    bytes_at_rest: int
    state_bytes: int
    float_share: float
    calibration_s: float
    peak_bytes: int
    prefill: Relative
    decode: Relative
    by_stages: str
    measured: str
    scores: ModelScores

    @cached_property
    def kl_documents(self) -> Array:
        """KL of every document, nats a token, weighted such that their mean is the mean over domains."""
        return over_domains([_divergence(scores).kl for scores in self.scores.domains.values()])

    @cached_property
    def kl(self) -> Interval:
        """Mean over domains of the mean KL divergence from the float model, nats a token."""
        return mean_interval(self.kl_documents)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of a comparison's "rows"."""
        return {
            "recipe": self.recipe,
            "bits_weight": self.bits_weight,
            "bits_activation": self.bits_activation,
            "bytes": self.bytes_at_rest,
            "state_bytes": self.state_bytes,
            "float_share": self.float_share,
            "peak_bytes": self.peak_bytes,
            "prefill_rel": self.prefill.p50,
            "prefill_rel_p20_p80": [self.prefill.p20, self.prefill.p80],
            "decode_rel": self.decode.p50,
            "decode_rel_p20_p80": [self.decode.p20, self.decode.p80],
            "by_stages": self.by_stages,
            "calibration_s": self.calibration_s,
            "kl": self.kl.value,
            "kl_ci": self.kl.bounds(),
            "kl_documents": self.kl_documents.tolist(),
            "measured": self.measured,
            "domains": self.scores.to_json(),
        }

    def to_record(self) -> dict[str, Any]:
        """Return plain data that `from_record` makes the same row of."""
        fields = {name: value for name, value in vars(self).items() if name in Row.__dataclass_fields__} | {
            "prefill": self.prefill._asdict(),
            "decode": self.decode._asdict(),
        }
        return fields | {"scores": {name: _scores_record(s) for name, s in self.scores.domains.items()}}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Row:
        """Return the row of a record.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is no such record.
        """
        domains = {name: _scores(entry) for name, entry in record["scores"].items()}
        restored = {
            "prefill": Relative(**record["prefill"]),
            "decode": Relative(**record["decode"]),
            "scores": ModelScores(record["recipe"], domains),
        }
        return cls(**{**record, **restored})


def _divergence(scores: DomainScores) -> Divergence:
    assert scores.divergence is not None, "rows are made against the float model"
    return scores.divergence


def _scores_record(scores: DomainScores) -> dict[str, Any]:
    arrays = {"nll": scores.nll, **asdict(_divergence(scores))}
    return {"tokens": scores.tokens, **{name: array.tolist() for name, array in arrays.items()}}


def _scores(record: Mapping[str, Any]) -> DomainScores:
    kl, top1, nll_reference, nll = (
        np.asarray(record[name], dtype=np.float64) for name in ("kl", "top1", "nll_reference", "nll")
    )
    return DomainScores(record["tokens"], nll, Divergence(kl, top1, nll_reference))
