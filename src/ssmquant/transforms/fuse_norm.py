"""`fuse_norm`: the gains of the norms go into the linear layers that read them.

Block norm into in_proj's columns; gated norm into out_proj's. The final norm keeps its gain (folding it would untie
the head) unless the residual stream is rotated.
"""

from __future__ import annotations

from ssmquant.families import Shell
from ssmquant.modules.mamba2 import GatedNorm, Mamba2Mixer
from ssmquant.modules.weights import Linear, RMSNorm
from ssmquant.transforms.base import Context, Transform, replace_parameter

__all__ = ["FUSE_NORM", "fold_gain"]


def fold_gain(norm: RMSNorm | GatedNorm, linear: Linear) -> None:
    """Move the norm's gain ``[K]`` into the columns of ``linear.weight [N, K]``."""
    gain = norm.weight.detach()
    replace_parameter(linear, "weight", linear.weight.detach() * gain)
    replace_parameter(norm, "weight", gain.new_ones(gain.shape))


def _apply(shell: Shell, context: Context) -> None:
    for block in shell.blocks:
        mixer = block.mixer
        fold_gain(block.norm, mixer.in_proj)
        if isinstance(mixer, Mamba2Mixer):
            fold_gain(mixer.norm, mixer.out_proj)


FUSE_NORM = Transform("fuse_norm", _apply)
