"""Transforms: function-preserving changes of the float model before it is quantised; one module each."""

from __future__ import annotations

from ssmquant.transforms.awq import AWQ
from ssmquant.transforms.base import Context, Transform
from ssmquant.transforms.fuse_norm import FUSE_NORM
from ssmquant.transforms.hadamard_out import HADAMARD_OUT
from ssmquant.transforms.reorder import REORDER
from ssmquant.transforms.rotate_residual import ROTATE_RESIDUAL
from ssmquant.transforms.smooth import SMOOTH

__all__ = ["TRANSFORMS", "Context", "Transform"]

# In the order in which they are applied: reorder moves channels that hadamard_out would mix.
TRANSFORMS = {t.name: t for t in (FUSE_NORM, ROTATE_RESIDUAL, SMOOTH, AWQ, REORDER, HADAMARD_OUT)}
