"""`Model`: a language model, float or quantised, with its tokenizer: what `load` and `quantize` return."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ssmquant.errors import ModelError
from ssmquant.families import Config, Shell, transformers_model
from ssmquant.files import combined, digests
from ssmquant.planning import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ssmquant.runtime.choice import AnyEngine

__all__ = ["Model"]

Prompt = TypeVar("Prompt", str, list[str])


class _Engines:
    """The engine that was asked for last: packing a model's weights takes as long as reading them."""

    def __init__(self) -> None:
        self._key: object = None
        self._engine: AnyEngine | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Engines], tuple[()]]:
        """A copy of a model, here or in another process, packs its weights itself."""
        return _Engines, ()

    def get(self, key: Callable[[], object], make: Callable[[], AnyEngine]) -> AnyEngine:
        """Return the engine of the model as it is now, made if that is not the last one's.

        Args:
            key: tells models and options apart.
            make: makes the engine; may change the model.
        """
        with self._lock:
            if self._engine is None or key() != self._key:
                self._engine = None  # before its successor takes memory
                self._engine = make()
                self._key = key()
            return self._engine


def _version(shell: Shell) -> object:
    """Return what changes when a tensor of the model is replaced or written to, or a site is observed."""
    stored = shell.model.state_dict(keep_vars=True).values()
    # Tensors made under inference mode count no versions.
    tensors = tuple((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in stored)
    return tensors, tuple(bool(site._forward_hooks) for _, site in shell.activations())


@dataclass
class Model:
    """A causal language model and its tokenizer.

    Attributes:
        name: path or id as it was given.
        shell: its stages.
        tokenizer: transformers' tokenizer; None if the folder has none.
        plan: what is quantised and how; None for a float model.
        provenance: how it was calibrated (see `pipeline.quantize`); empty for a float model.
        tensor_digests: of the tensors, where they are known without reading them all.
    """

    name: str
    shell: Shell
    tokenizer: PreTrainedTokenizerBase | None
    plan: Plan | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    tensor_digests: Mapping[str, str] | None = field(default=None, repr=False)
    _engines: _Engines = field(default_factory=lambda: _Engines(), repr=False, compare=False)

    @cached_property
    def module(self) -> PreTrainedModel:
        """Transformers' model around the same stages, made when it is first asked for."""
        return transformers_model(self.shell)

    @property
    def config(self) -> Config:
        """The config, under transformers' names."""
        return self.shell.config

    @property
    def family(self) -> str:
        """Name of the family: ``mamba``, ``falcon_mamba`` or ``mamba2``."""
        return self.shell.family.name

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.config.vocab_size)

    def to(self, device: str | torch.device) -> Model:
        """Move the model's tensors to a device, in place, and return the model."""
        self.shell.model.to(device)
        return self

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits of every position.

        Args:
            ids: int64 ``[B, L]``, sequences of one length without padding.

        Returns:
            float32 ``[B, L, vocab]``.
        """
        from ssmquant.runtime.choice import ReadsAll
        from ssmquant.runtime.engine import Engine

        engine = self.engine()
        return (engine if isinstance(engine, ReadsAll) else Engine(self.shell)).logits(ids)

    def engine(self, *, threads: int | None = None, keep_weights: bool = True) -> AnyEngine:
        """Return the engine that runs this model: the fastest one for where it is.

        The same engine is returned again while neither the model nor the options change. Where no engine for the device
        can run the model, its stages are run one by one, and the engine's ``reason`` says why.

        Args:
            threads: of an engine on the CPU; by default ``SSMQUANT_THREADS``, or one a processor core.
            keep_weights: False lets the engine drop the model's weights as it packs them, which spares the memory of a
                model that was not loaded from a folder; it can only be run then.
        """
        from ssmquant.ops.registry import forced_backend
        from ssmquant.runtime.choice import choose

        def make() -> AnyEngine:
            return choose(self.shell, identity=self.digest, threads=threads, keep_weights=keep_weights)

        return self._engines.get(lambda: (forced_backend(), threads, _version(self.shell)), make)

    def digest(self) -> str:
        """Return what tells this model from every other: 32 hexadecimal digits, from its tensors, config and plan."""
        tensors = self.tensor_digests or digests(self.shell.model.state_dict())
        plan = {} if self.plan is None else self.plan.to_json()
        constants = [repr((block.norm.eps, block.mixer.dims)) for block in self.shell.blocks]
        about = sha256(json.dumps([plan, constants], sort_keys=True).encode()).hexdigest()
        return combined({**tensors, "plan": about})

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        stream: Callable[[int, str], None] | None = None,
    ) -> Prompt:
        """Continue one text or several; each gets the text that it would get alone.

        Args:
            prompt: text, or list of texts.
            max_new_tokens: most tokens to add to each.
            temperature: 0 takes the likeliest token; above 0 samples.
            top_k: sample among the k likeliest tokens; 0 for all.
            top_p: sample among the likeliest tokens of this total probability.
            repetition_penalty: divides the (positive) logits of tokens seen before; 1 for none.
            seed: of the sampling.
            stop: texts that end the continuation (and are left out of it).
            stream: called with (index of the prompt, piece of text) as text appears.

        Returns:
            The continuations, without the prompts.
        """
        from ssmquant.runtime.generate import generate
        from ssmquant.runtime.sampling import Sampling

        if self.tokenizer is None:
            raise ModelError(
                f"{self.name} has no tokenizer; pass tokenizer=… to load, or copy tokenizer.json beside it"
            )
        results = generate(
            self.engine(),
            self.tokenizer,
            [prompt] if isinstance(prompt, str) else prompt,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                repetition_penalty=repetition_penalty,
                seed=seed,
            ),
            stop=stop,
            stream=stream,
        )
        texts = [result.text for result in results]
        return texts[0] if isinstance(prompt, str) else texts

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the quantised model as a folder that `load` and transformers read.

        Args:
            path: folder to make.
            force: replace an existing model folder; without it an existing path is refused.
        """
        from ssmquant.checkpoint import save

        save(self, Path(path), force=force)
