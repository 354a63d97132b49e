"""Cases and comparison of every op, for its reference and for every kernel.

    for case in SUITES["ssd"].cases:
        args = case.args()
        SUITES["ssd"].compare(args, run(*args))      # AssertionError unless within the op's tolerance class

Arguments are drawn from a seed that belongs to the case's name: small shapes, odd sizes, every combination of codes and
floats that the op takes. Results are compared with the implementations in `naive`.
"""

from __future__ import annotations

from . import codes, conv, linear, norms, scans
from .base import Args, Case, Draw, Suite
from .scans import assert_state

__all__ = ["SUITES", "Args", "Case", "Draw", "Suite", "assert_state"]

SUITES = {suite.op.name: suite for part in (linear, conv, scans, norms, codes) for suite in part.SUITES}
