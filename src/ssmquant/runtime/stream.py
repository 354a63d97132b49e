r"""Text from a growing list of tokens: whole characters only, and cut at stop strings.

A token of a byte-level vocabulary may end in the middle of a character, and a stop string may span tokens.
Both classes here hold text back until it is certain; what they hand out is never taken back.

    text = Detokenizer(tokenizer, context=prompt_ids)
    scanner = StopScanner(("\n\n",))
    piece = scanner.push(text.push(token_id))  # "" while nothing is certain; then look at scanner.stopped
    piece = scanner.push(text.flush()) + scanner.flush()  # the end
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ssmquant.errors import InputError

__all__ = ["Decoder", "Detokenizer", "StopScanner"]

# What a decoder puts in place of bytes that are no character (yet).
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# Tokens of the prompt decoded along with the first generated ones: some vocabularies (SentencePiece) drop the
# space before the first token they decode, so the first generated word needs something in front of it.
_CONTEXT_TOKENS = 8


class Decoder(Protocol):
    """The part of a transformers tokenizer that turns token ids into text."""

    def decode(self, token_ids: list[int], **kwargs: Any) -> Any:
        """Return the text of `token_ids`."""


class Detokenizer:
    """Decodes one sequence token by token; the pieces joined are the text after the prompt.

    Only a short window of tokens is decoded at each step. It starts at a character boundary, and its first
    part has been handed out already; it is there because the text of a token may depend on the one before.
    """

    def __init__(self, tokenizer: Decoder, context: Sequence[int] = ()) -> None:
        """Start after the token ids `context` (the prompt), whose text is not handed out."""
        self._tokenizer = tokenizer
        self._window = list(context[-_CONTEXT_TOKENS:])
        self._done = len(self._window)  # tokens of the window whose text has been handed out

    def push(self, token: int) -> str:
        """Add a token; return the text that became certain, often "" for characters of several bytes."""
        self._window.append(token)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):
            return ""
        return self._hand_out(text)

    def flush(self) -> str:
        """Return the text still held back, with U+FFFD for an unfinished character."""
        return self._hand_out(self._decode(self._window))

    def _hand_out(self, text: str) -> str:
        piece = text[len(self._decode(self._window[: self._done])) :]
        if piece:
            self._window = self._window[self._done :]
            self._done = len(self._window)
        return piece

    def _decode(self, ids: list[int]) -> str:
        # Cleaning up spaces would change text that has been handed out.
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopScanner:
    """Passes text through up to the first stop string, which is cut out.

    Where stop strings overlap, the one that is complete first counts, so that the result does not depend on
    how the text was divided into pieces.
    """

    def __init__(self, stop: str | Sequence[str]) -> None:
        """Look for the string, or any of the strings, `stop`; InputError when one is empty."""
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in self._stop:
            raise InputError("generate: a stop string is empty, so it would stop at once; leave it out")
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """Add text; return the part of it that cannot belong to a stop string ("" once stopped)."""
        if self.stopped:
            return ""
        self._held += text
        matches = [(start + len(stop), start) for stop in self._stop if (start := self._held.find(stop)) >= 0]
        if matches:
            self.stopped = True
            return self._held[: min(matches)[1]]
        sure = len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0)
        piece, self._held = self._held[:sure], self._held[sure:]
        return piece

    def flush(self) -> str:
        """Return the text still held back: the beginning of a stop string that never came to its end."""
        piece, self._held = ("" if self.stopped else self._held), ""
        return piece


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest proper beginning of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
