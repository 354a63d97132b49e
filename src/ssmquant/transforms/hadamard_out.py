"""`hadamard_out`: y is Hadamard-transformed before out_proj, and out_proj's columns with it (Quamba, section 4.2).

``W y = (W H^T)(H y)`` for an orthonormal H: the outliers of y are spread over all channels before it becomes
int8. The one transform that is not folded away: the mixers apply H online.
"""

from __future__ import annotations

from ssmquant.families import Shell
from ssmquant.families.table import Dims
from ssmquant.ops.hadamard.matrix import check_size
from ssmquant.ops.hadamard.reference import hadamard
from ssmquant.transforms.base import Context, Transform, replace_parameter

__all__ = ["HADAMARD_OUT"]


def _apply(shell: Shell, context: Context) -> None:
    for block in shell.blocks:
        linear = block.mixer.out_proj
        replace_parameter(linear, "weight", hadamard(linear.weight.detach().double()))
        block.mixer.hadamard = True


def _check(dims: Dims) -> None:
    check_size(dims.d_inner)


HADAMARD_OUT = Transform("hadamard_out", _apply, check=_check, online=True)
