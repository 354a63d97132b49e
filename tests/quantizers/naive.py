"""GPTQ from its paper, in numpy float64: algorithm 1 word by word, and the definition that it speeds up."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def codes(column: Array, step: Array, bits: int) -> Array:
    """Return the symmetric codes of a column with that many bits."""
    limit = 2 ** (bits - 1) - 1
    return within(column, step, -limit, limit)


def within(column: Array, step: Array, lowest: Any, highest: Any) -> Array:
    """Return the integers of a column by the numerics contract: a float32 product by the float32 reciprocal."""
    steps = column.astype(np.float32) * (np.float32(1.0) / step.astype(np.float32))
    return np.clip(np.rint(steps), lowest, highest).astype(np.int8)


def damped(hessian: Array, damping: float) -> Array:
    return hessian + damping * np.mean(np.diag(hessian)) * np.eye(len(hessian))


def algorithm_1(
    W: Array, H: Array, steps: Array, lowest: Array, highest: Array, B: int, damping: float
) -> Array:
    """Return integers ``[rows, columns]``; columns in the order that they have, ``steps [rows or 1, columns]``."""
    W = W.astype(np.float64)
    d_row, d_col = W.shape
    Q = np.zeros((d_row, d_col), dtype=np.int8)
    inverse = np.linalg.cholesky(np.linalg.inv(damped(H, damping))).T
    for i in range(0, d_col, B):
        end = min(i + B, d_col)
        E = np.zeros((d_row, end - i))
        for j in range(i, end):
            Q[:, j] = within(W[:, j], steps[:, j], lowest[:, j], highest[:, j])
            E[:, j - i] = (W[:, j] - Q[:, j] * steps[:, j].astype(np.float64)) / inverse[j, j]
            W[:, j:end] -= np.outer(E[:, j - i], inverse[j, j:end])
        W[:, end:] -= E @ inverse[i:end, end:]
    return Q


def definition(W: Array, H: Array, steps: Array, lowest: Array, highest: Array, damping: float) -> Array:
    """Return the same by equation 2: the Hessian of the columns still to come is inverted anew for each column."""
    W, H = W.astype(np.float64), damped(H, damping)
    Q = np.zeros(W.shape, dtype=np.int8)
    for q in range(W.shape[1]):
        Q[:, q] = within(W[:, q], steps[:, q], lowest[:, q], highest[:, q])
        inverse = np.linalg.inv(H[q:, q:])
        error = (W[:, q] - Q[:, q] * steps[:, q].astype(np.float64)) / inverse[0, 0]
        W[:, q:] -= np.outer(error, inverse[0])
    return Q
