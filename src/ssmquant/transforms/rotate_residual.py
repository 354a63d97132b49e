"""`rotate_residual`: the residual stream is Hadamard-rotated (QuaRot, arXiv 2404.00456, section 4).

RMS norms without gain commute with an orthonormal rotation, so nothing is left to do at run time. The head
gets the final norm's gain and is no longer the embedding.
"""

from __future__ import annotations

from ssmquant.errors import SsmquantError
from ssmquant.families import Shell
from ssmquant.families.table import Dims
from ssmquant.ops.hadamard.matrix import check_size
from ssmquant.ops.hadamard.reference import hadamard
from ssmquant.transforms.base import Context, Transform, replace_parameter
from ssmquant.transforms.fuse_norm import fold_gain

__all__ = ["ROTATE_RESIDUAL"]


def _apply(shell: Shell, context: Context) -> None:
    if shell.head.linear is None:
        raise SsmquantError("rotate_residual needs a head of its own; build the shell untied")
    fold_gain(shell.final_norm, shell.head.linear)
    for reader in (shell.embedding, shell.head.linear, *(block.mixer.in_proj for block in shell.blocks)):
        replace_parameter(reader, "weight", hadamard(reader.weight.detach().double()))
    for block in shell.blocks:
        writer = block.mixer.out_proj
        replace_parameter(writer, "weight", hadamard(writer.weight.detach().double().T).T)
        if writer.bias is not None:
            replace_parameter(writer, "bias", hadamard(writer.bias.detach().double()))


def _check(dims: Dims) -> None:
    check_size(dims.d_model)


ROTATE_RESIDUAL = Transform("rotate_residual", _apply, check=_check, requires=("fuse_norm",), unties=True)
