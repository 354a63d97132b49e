"""How many columns are outliers in layers that find them at run time (LLM.int8()): a property of the text, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ssmquant.formats.int8_outliers import Int8Outliers
from ssmquant.model import Model
from ssmquant.modules.weights import Weight
from ssmquant.ops.outlier_linear import outlier_columns
from ssmquant.runtime.engine import Engine

__all__ = ["outlier_shares"]


@dataclass(frozen=True)
class _Counter(Int8Outliers):
    """The format of a layer that notes the share of outlier columns of each call."""

    shares: list[float] = field(default_factory=list)

    def linear(
        self,
        stored: Mapping[str, Tensor],
        x: Tensor,
        x_scale: Tensor | None,
        bias: Tensor | None,
        scale_out: Tensor | None,
    ) -> Tensor:
        """Return the layer's product."""
        self.shares.append(float(outlier_columns(x, self.threshold).double().mean()))
        return super().linear(stored, x, x_scale, bias, scale_out)


@torch.no_grad()
def outlier_shares(model: Model, domains: Mapping[str, Tensor], *, documents: int = 4) -> dict[str, float]:
    """Return the mean share of outlier columns, 0 … 1, by the weight of each layer that looks for them.

    A column counts for all tokens of a call, so the share grows with them. A call has `documents` documents here, as in
    `ssmquant.eval.evaluate`.

    Args:
        model: the quantised model.
        domains: name -> tokens, int64 ``[documents, L]``; the first ones of each are read.
        documents: in a call.
    """
    layers = {name: weight for name, weight in model.shell.weights() if _looks_for_outliers(weight)}
    if not layers:
        return {}
    usual = {name: weight.format for name, weight in layers.items()}
    counters = {name: _Counter(weight.scheme.outlier_threshold or 0.0) for name, weight in layers.items()}
    try:
        for name, weight in layers.items():
            weight.format = counters[name]
        for ids in domains.values():
            Engine(model.shell).hidden(ids[:documents], None)
    finally:
        for name, weight in layers.items():
            weight.format = usual[name]
    return {name: sum(counter.shares) / len(counter.shares) for name, counter in counters.items()}


def _looks_for_outliers(weight: Weight) -> bool:
    return weight.scheme.outlier_threshold is not None
