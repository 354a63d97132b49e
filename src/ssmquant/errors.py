"""Exceptions of ssmquant.

    SsmquantError
    ├── InputError (also ValueError)      bad input; the command line exits with status 2
    │   ├── ModelError                    a model that cannot be read or is of no known family
    │   ├── RecipeError                   a recipe or option that is unknown, contradictory or does not fit the model
    │   ├── DataError                     text that is missing, unreadable or too short
    │   └── CheckpointError               a quantised folder that is damaged, foreign or in the way
    └── CheckFailed                       a check was run and did not pass; exit status 1

Every message says what was asked, what was found and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckFailed",
    "CheckpointError",
    "DataError",
    "InputError",
    "ModelError",
    "RecipeError",
    "SsmquantError",
    "nearest",
]


class SsmquantError(Exception):
    """Base of every error that ssmquant raises on purpose."""


class InputError(SsmquantError, ValueError):
    """The input cannot be used; nothing has been written."""


class ModelError(InputError):
    """A model folder or id that cannot be read, or whose family is unknown."""


class RecipeError(InputError):
    """A recipe that is unknown, malformed, or does not fit the model."""


class DataError(InputError):
    """Calibration or evaluation text that is missing, unreadable or too short."""


class CheckpointError(InputError):
    """A quantised folder that is damaged, foreign, or in the way."""


class CheckFailed(SsmquantError):
    """A verification ran to its end and did not pass."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of an error message: the nearest known name, or the list of all of them.

    Args:
        word: what was asked for.
        known: the names that exist.
    """
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
