"""What is timed: one prefill and some steps after it, on any engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssmquant.errors import InputError
from ssmquant.runtime.generate import StepEngine

__all__ = ["Times", "Workload", "run_workload"]

_SEED = 0


@dataclass(frozen=True)
class Workload:
    """What is timed.

    Attributes:
        prompt_len: tokens that the prefill reads, a sequence.
        gen_len: steps after the prefill; each reads one token a sequence.
        batch: sequences at once.
        repeats: repetitions that count.

    Raises:
        InputError: one of them is below 1.
    """

    prompt_len: int = 512
    gen_len: int = 128
    batch: int = 1
    repeats: int = 5

    def __post_init__(self) -> None:
        """Refuse numbers that time nothing."""
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"bench: {name} is {value}; it is at least 1")

    def warm_up(self) -> Workload:
        """Return what is run once before anything counts: the same prefill, and one step."""
        return Workload(self.prompt_len, 1, self.batch, 1)


class Times(NamedTuple):
    """Seconds of one repetition.

    Attributes:
        prefill: from the prompt to the logits after it (time to the first token).
        decode: of all steps together.
    """

    prefill: float
    decode: float


def run_workload(
    engine: StepEngine[Any], workload: Workload, vocab: int, synchronize: Callable[[], object]
) -> Times:
    """Time one repetition.

    Tokens are random and fixed beforehand: choosing them is no part of what is compared, and a peer that draws them
    otherwise does the same work.

    Args:
        engine: runs the model.
        workload: what is timed.
        vocab: tokens are below it.
        synchronize: returns when the device has done all that it was given.
    """
    prompts, tokens = _tokens(workload, vocab)
    synchronize()
    start = perf_counter()
    _, state = engine.prefill(prompts)
    synchronize()
    read = perf_counter()
    for token in tokens:
        _, state = engine.step(token, state)
    synchronize()
    return Times(read - start, perf_counter() - read)


def _tokens(workload: Workload, vocab: int) -> tuple[list[list[int]], Tensor]:
    """Return the prompts ``[B][prompt_len]`` and what the steps read, int64 ``[gen_len, B]``."""
    random = torch.Generator().manual_seed(_SEED)
    prompts = torch.randint(vocab, (workload.batch, workload.prompt_len), generator=random).tolist()
    return prompts, torch.randint(vocab, (workload.gen_len, workload.batch), generator=random)
