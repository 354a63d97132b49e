"""`Model`: a language model, float or quantised, with its tokenizer: what `load` and `quantize` return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from ssmquant.errors import ModelError
from ssmquant.families import Shell
from ssmquant.planning import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ssmquant.runtime.engine import Engine

__all__ = ["Model"]

Prompt = TypeVar("Prompt", str, list[str])


@dataclass
class Model:
    """A causal language model and its tokenizer.

    Attributes:
        name: path or id as it was given.
        shell: transformers' model with our stages inside.
        tokenizer: transformers' tokenizer; None if the folder has none.
        plan: what is quantised and how; None for a float model.
        provenance: how it was calibrated (see `pipeline.quantize`); empty for a float model.
    """

    name: str
    shell: Shell
    tokenizer: PreTrainedTokenizerBase | None
    plan: Plan | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def module(self) -> PreTrainedModel:
        """Transformers' model."""
        return self.shell.model

    @property
    def config(self) -> Any:
        """Transformers' config."""
        return self.shell.model.config

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
        self.shell.model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method untyped
        return self

    def logits(self, ids: Tensor) -> Tensor:
        """Return the logits of every position.

        Args:
            ids: int64 ``[B, L]``, sequences of one length without padding.

        Returns:
            float32 ``[B, L, vocab]``.
        """
        with torch.no_grad():
            hidden, _ = self.engine().hidden(ids, None)
            logits: Tensor = self.shell.head(hidden)
        return logits

    def engine(self) -> Engine:
        """Return the engine that runs this model."""
        from ssmquant.runtime.engine import Engine

        return Engine(self.shell)

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
