"""Models with an engine in Python, as a process of its own loads them: ours, and transformers' float ones.

Each is a small description that travels to the process; `load` is called there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ssmquant.bench.contestant import Facts
from ssmquant.bench.synthetic import random_shape
from ssmquant.families import Config, transformers_config
from ssmquant.footprint import bytes_at_rest, integer_products
from ssmquant.loading import load
from ssmquant.model import Model
from ssmquant.runtime.choice import AnyEngine
from ssmquant.runtime.generate import StepEngine

__all__ = ["OurModel", "Subject", "SubjectSpec", "TransformersModel"]


class Subject(NamedTuple):
    """A loaded model: its engine, its vocabulary, what is known of it."""

    engine: StepEngine[Any]
    vocab: int
    facts: Facts


class SubjectSpec(Protocol):
    """Says which model; can be pickled."""

    @property
    def device(self) -> str:
        """Where it runs: ``cpu`` or ``cuda``."""

    def load(self) -> Subject:
        """Return the model, ready to run."""


@dataclass(frozen=True)
class OurModel:
    """A model of ours.

    Attributes:
        model: folder, Hub id, or name of a shape.
        recipe: for a shape, in which it is made at random; None for a folder, which has its own.
        device: ``cpu`` or ``cuda``.
    """

    model: str
    recipe: str | None
    device: str

    def load(self) -> Subject:
        """Load the folder, or make the shape."""
        model = (
            load(self.model) if self.recipe is None else random_shape(self.model, self.recipe, self.device)
        )
        facts = _facts(model)  # before the engine, which need not keep the tensors
        engine = model.to(self.device).engine(keep_weights=False)
        facts = facts._replace(
            engine=type(engine).__name__, engine_reason=engine.reason, state_bytes=_state_bytes(model, engine)
        )
        packed = getattr(engine, "weight_bytes", facts.weight_bytes)
        if (
            facts.read_bytes is not None and packed < facts.read_bytes
        ):  # of half-precision numbers in float32, half
            facts = facts._replace(read_bytes=packed)
        return Subject(engine, model.vocab_size, facts)


def _facts(model: Model) -> Facts:
    """Return what is known of a model without running it."""
    stored = bytes_at_rest(model)
    table = sum(tensor.nbytes for tensor in model.shell.embedding.stored.values())
    products = integer_products(model.plan) if model.plan is not None else {}
    head = products.pop("lm_head.weight", 0)
    return Facts(
        name=Path(model.name).name,
        recipe=model.plan.recipe if model.plan is not None else "float32",
        engine="",
        parameters=sum(rows * columns for rows, columns in (w.shape for _, w in model.shell.weights())),
        weight_bytes=stored,
        read_bytes=stored if model.shell.tied else stored - table,
        token_operations=2 * sum(products.values()),
        head_operations=2 * head,
    )


def _state_bytes(model: Model, engine: AnyEngine) -> int:
    """Return the bytes of one sequence's state, right after a rounding."""
    schemes = model.plan.activation_schemes.values() if model.plan is not None else ()
    _, state = engine.prefill([[0] * max((scheme.interval or 1 for scheme in schemes), default=1)])
    return int(state.nbytes)


@dataclass(frozen=True)
class TransformersModel:
    """Transformers' own model of a configuration, with the random weights that it starts from.

    Attributes:
        config: of the model.
        dtype: ``float32`` or ``bfloat16``.
        device: ``cpu`` or ``cuda``.
    """

    config: Config
    dtype: str
    device: str

    def load(self) -> Subject:
        """Make the model."""
        import transformers

        transformers.utils.logging.set_verbosity_error()  # it says at length which CUDA kernels are missing
        dtype = getattr(torch, self.dtype)
        config = transformers_config(self.config)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
        model.eval().to(self.device)
        parameters = list(model.parameters())
        facts = Facts(
            name=f"transformers {transformers.__version__}",
            recipe=self.dtype,
            engine="transformers",
            parameters=sum(p.numel() for p in parameters if p.dim() > 1),
            weight_bytes=sum(p.nbytes for p in parameters),
        )
        return Subject(_TransformersEngine(model, self.device), self.config.vocab_size, facts)


class _TransformersEngine:
    """Prefill and step through transformers' forward."""

    def __init__(self, model: Any, device: str) -> None:
        self._model, self._device = model, device

    def prefill(self, prompts: list[list[int]]) -> tuple[Tensor, Any]:
        """Read prompts of one length."""
        return self._forward(torch.tensor(prompts), None)

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Read a token of each sequence; the state is changed."""
        return self._forward(tokens[:, None], state)

    @torch.no_grad()
    def _forward(self, ids: Tensor, cache: Any) -> tuple[Tensor, Any]:
        out = self._model(ids.to(self._device), cache_params=cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1], out.cache_params
