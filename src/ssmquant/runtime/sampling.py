"""From logits to the next token: greedy choice, temperature, top-k, top-p, repetition penalty.

The definitions and their order (repetition penalty, temperature, top-k, top-p) are those of transformers'
logits processors, so a text can be compared with `model.generate(...)`. Left out: beam search and every other
processor.

    Sampling(temperature=0.8, top_p=0.95, seed=1)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmquant.errors import InputError, SsmquantError

__all__ = ["Sampling", "check_drawn", "draw", "process_logits", "sample"]

_WHOLE = 2.0**52
"""A probability of 1 as an integer: cumulative distributions are exact, in whatever order a device adds."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the default is greedy.

    Attributes:
        temperature: logits are divided by it; 0 chooses the largest logit (then top_k, top_p and seed do not
            matter).
        top_k: keep the k largest logits; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches p (arXiv 1904.09751); 1 keeps all.
        repetition_penalty: divides positive and multiplies negative logits of tokens that occurred before,
            prompt included (arXiv 1909.05858, section 4.1); 1 changes nothing.
        seed: of the random numbers; each prompt draws its own sequence from the same seed.

    Raises:
        InputError: for a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        ranges = (
            (
                "temperature",
                self.temperature,
                0 <= self.temperature < math.inf,
                "0 (greedy) or a positive number",
            ),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or a positive count of tokens"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "a probability above 0, at most 1 (off)"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0 < self.repetition_penalty < math.inf,
                "a positive number, 1 (off) or above to discourage repetition",
            ),
            ("seed", self.seed, 0 <= self.seed < 2**63, "a whole number from 0 to 2^63 - 1"),
        )
        for name, value, valid, expected in ranges:
            if not valid:
                raise InputError(f"sampling: {name}={value} is out of range; use {expected}")

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is taken, so that no random number is drawn."""
        return self.temperature == 0

    def generator(self) -> torch.Generator:
        """Return a fresh random generator for one prompt.

        Every prompt gets the same seed, whatever its place in a batch: its text is the one it would get
        alone.
        """
        return torch.Generator().manual_seed(self.seed)


def process_logits(logits: Tensor, history: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
    """Return the logits that the next token is drawn from; excluded tokens are -inf.

    Args:
        logits: float32 [B, V].
        history: for each row the token ids so far, prompt and generated; rows may differ in length.
        sampling: what to apply. With temperature 0 only the repetition penalty is applied.

    Returns:
        float32 [B, V]; the argument is not changed.
    """
    if sampling.repetition_penalty != 1:
        logits = _penalise(logits, history, sampling.repetition_penalty)
    if sampling.greedy:
        return logits
    logits = logits / sampling.temperature
    if sampling.top_k:
        smallest_kept = logits.topk(min(sampling.top_k, logits.shape[-1])).values[:, -1:]  # [B, 1]
        logits = logits.masked_fill(logits < smallest_kept, -math.inf)
    if sampling.top_p < 1:
        logits = _keep_top_p(logits, sampling.top_p)
    return logits


def sample(
    logits: Tensor,
    history: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Choose the next token of each row: `draw`, and `check_drawn` of it.

    Args:
        logits: float32 [B, V], on any device.
        history: for each row the token ids so far, prompt and generated.
        sampling: how to choose.
        generators: a CPU generator for each row, advanced by one draw unless the choice is greedy.

    Returns:
        int64 [B] on the device of `logits`.

    Raises:
        SsmquantError: when a logit is NaN.
    """
    tokens = draw(logits, history, sampling, generators)
    check_drawn(tokens.tolist())
    return tokens


def draw(
    logits: Tensor,
    history: Sequence[Sequence[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Choose the next token of each row where the logits are, without waiting for that device.

    Rows do not influence one another. One uniform number a row and token is drawn on the CPU, so that a seed means the
    same on every device, and inverted through the cumulative distribution. Arguments are those of `sample`.

    Returns:
        int64 [B] on the device of `logits`; -1 for a row with a NaN (see `check_drawn`).
    """
    unusable = logits.isnan().any(-1)
    logits = process_logits(logits.float(), history, sampling)
    if sampling.greedy:
        return torch.where(unusable, -1, logits.argmax(-1))
    cumulative = (logits.softmax(-1).double() * _WHOLE).long().cumsum(-1)  # [B, V]
    uniform = torch.stack(
        [torch.rand(1, dtype=torch.float64, generator=generator) for generator in generators]
    )
    if logits.is_cuda:
        uniform = uniform.pin_memory().to(logits.device, non_blocking=True)
    # `right` steps over tokens of probability 0, where the cumulative distribution is flat.
    at = (uniform * cumulative[:, -1:]).long()
    tokens = torch.searchsorted(cumulative, at, right=True).squeeze(-1)
    return torch.where(unusable, -1, tokens)


def check_drawn(tokens: Sequence[int]) -> None:
    """Refuse what `draw` gives for rows with NaN.

    Args:
        tokens: of each row, on the CPU.

    Raises:
        SsmquantError: when there was a NaN.
    """
    if any(token < 0 for token in tokens):
        raise SsmquantError(
            "sampling: the model returned NaN logits, so no token can be chosen; "
            "run `ssmquant verify` on the model folder, or quantise it again with other calibration text"
        )


def _penalise(logits: Tensor, history: Sequence[Sequence[int]], penalty: float) -> Tensor:
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, ids in enumerate(history):
        seen[row, torch.tensor(ids, dtype=torch.int64, device=logits.device)] = True
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def _keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    ascending, order = logits.sort(dim=-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    dropped[:, -1] = False  # rounding must not drop every token
    return logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -math.inf)
