"""What an option of a config may be set to."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["EPSILON", "FLAG", "LIMITS", "RANK", "WHOLE", "WORD", "Value"]


class Value(NamedTuple):
    """A kind of value.

    Attributes:
        kind: it in words, for errors.
        legal: tells whether something is one.
    """

    kind: str
    legal: Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)


def _limits(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_number, value))


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _rank(value: Any) -> bool:
    return value == "auto" or _whole(value)


def _epsilon(value: Any) -> bool:
    return _number(value) and 0 <= value < math.inf


def _word(value: Any) -> bool:
    return isinstance(value, str)


# Functions with names: models go to other processes, and their families with them.
WHOLE = Value("a whole number above 0", _whole)
FLAG = Value("true or false", _flag)
RANK = Value('"auto" or a whole number above 0', _rank)
LIMITS = Value("two numbers", _limits)
EPSILON = Value("a number of at least 0", _epsilon)
WORD = Value("a word", _word)
