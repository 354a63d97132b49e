"""Two int4 codes in a byte: the kernel-agnostic packing of checkpoints.

Code 2j of a row is the low nibble of byte j, code 2j + 1 the high one, in two's complement: [-3, 7] is the byte 0x7D.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ssmquant.errors import InputError

__all__ = ["pack_int4", "unpack_int4"]


def pack_int4(codes: Tensor) -> Tensor:
    """Return int8 codes ``[N, K]`` in [-8, 7], K even, as uint8 ``[N, K / 2]``.

    Raises:
        InputError: the codes are not int8, K is odd, or a code does not fit four bits.
    """
    if codes.dtype != torch.int8:
        raise InputError(f"int4 packing: codes must be torch.int8, got {codes.dtype}")
    if codes.shape[-1] % 2:
        raise InputError(f"int4 packing: rows must have an even number of codes, got {codes.shape[-1]}")
    if codes.numel() and not -8 <= int(codes.min()) <= int(codes.max()) <= 7:
        raise InputError(
            f"int4 packing: codes must be in [-8, 7], found {int(codes.min())} to {int(codes.max())}"
        )
    nibbles = codes.view(torch.uint8) & 0xF
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack_int4(packed: Tensor) -> Tensor:
    """Return the int8 codes ``[N, K]`` of uint8 ``[N, K / 2]``."""
    signed = packed.view(torch.int8)
    # Shifting left and back right by four extends the sign of a nibble.
    return torch.stack([(signed << 4) >> 4, signed >> 4], dim=-1).flatten(-2)
