"""On a GPU: steps of Mamba-2 at real sizes and batches against the reference's scan, over poisoned memory.

The interpreter runs programs one after another, so it cannot show what only overlapping launches do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from ssmquant.ops.causal_conv1d.reference import causal_conv1d
from ssmquant.ops.ssd.reference import ssd
from ssmquant.tolerance import assert_float32, assert_requantised

from .cases import Draw

if TYPE_CHECKING:
    from ssmquant.ops.ssd.triton_step import Constants

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: launches that overlap cannot be interpreted"
)

TOKENS = 70  # over the end of an interval of 64


def scale_rows(draw: Draw, groups: int, heads: int, headdim: int) -> tuple[Tensor, Tensor]:
    """Return the four rows of each head, ``[H, 4]``, of sixteen of its group, and the choice of each channel."""
    of_group = heads // groups
    head = torch.arange(heads)
    cluster = head // of_group * 4 + head % of_group * 4 // of_group
    rows = (cluster * 4)[:, None] + torch.arange(4)
    return rows.int(), draw.ids(heads * headdim, below=4).int()


def clear_of_roundings(x: Tensor, c: Constants) -> Tensor:
    """Return codes ``[B, T, C]`` with those changed after which the convolution's result is close to a rounding.

    There two right implementations may give codes that differ by one, and all that follows differs by 1/127.
    """
    for _ in range(20):
        taps = torch.nn.functional.pad(x.transpose(1, 2).double(), (3, 0)).unfold(-1, 4, 1)  # [B, C, T, 4]
        total = (taps * c.conv_weight[:, None].double()).sum(-1).transpose(1, 2)
        code = torch.nn.functional.silu(total * c.conv_scale + c.conv_bias) * c.conv_inverse
        close = ((code - code.floor() - 0.5).abs() < 1e-3) & (code.abs() < 128)
        if not close.any():
            return x
        x = torch.where(close, ((x.int() + 164) % 255 - 127).to(torch.int8), x)
    raise AssertionError("no input found whose convolution is clear of roundings")


@pytest.mark.parametrize("batch", [1, 2, 5, 17, 64])
@pytest.mark.parametrize(("heads", "groups"), [(80, 1), (128, 8)])
def test_mamba2_steps_are_the_scan(heads: int, groups: int, batch: int) -> None:
    from ssmquant.ops.ssd.triton import size_of_states
    from ssmquant.ops.ssd.triton_step import Constants, Memory, Sizes, round_states, step

    draw, sizes = Draw(heads + batch), Sizes(heads, 64, groups, 128, 4, 64)
    inner, width, shared = sizes.d_inner, sizes.conv_dim, groups * 128
    rows, choice = scale_rows(draw, groups, heads, 64)
    row = rows.gather(1, choice.view(heads, 64).long()).flatten()
    out = draw.scale(width, absmax=3.0)
    out[inner:] = out[inner::128].repeat_interleave(128)  # B and C have one scale a group
    scale = draw.scale(groups * 16, 128, absmax=40.0)
    weight, conv_scale, bias = draw.codes(width, 4), 0.01 * draw.scale(width), 0.1 * draw.normal(width)
    weight[:, -1] = torch.where(
        weight[:, -1] == 0, 1, weight[:, -1]
    )  # every input counts when it is the newest
    projected = draw.codes(batch, TOKENS, inner + width + heads)
    constants = Constants(
        weight, conv_scale, bias, 1.0 / out, out[:inner].clone(), out[inner : inner + shared : 128].clone(),
        out[inner + shared :: 128].clone(), draw.scale(heads), draw.uniform(heads, low=-6.0, high=-2.0),
        -draw.uniform(heads, low=1.0, high=16.0), draw.normal(heads), scale, rows, choice, row, size_of_states(scale),
    )  # fmt: skip
    constants = Constants(**{name: tensor.cuda() for name, tensor in vars(constants).items()})
    projected, c = projected.cuda(), constants
    for index in range(batch):  # one after the other: in float64 all would take much memory
        inputs = projected[index : index + 1, :, inner : inner + width]
        inputs.copy_(clear_of_roundings(inputs, c))

    conv = causal_conv1d(
        projected[:, :, inner : inner + width], conv_scale.cuda(), c.conv_weight, torch.ones(1).cuda(), c.conv_bias,
        torch.zeros(batch, width, 4, dtype=torch.int8).cuda(), out.cuda(),
    )[0]  # fmt: skip
    x, B, C = conv.split([inner, shared, shared], dim=-1)

    def reference(tokens: slice, state: Tensor) -> tuple[Tensor, Tensor]:
        y, after = ssd(
            x[:, tokens].unflatten(-1, (heads, 64)), c.x_scale, projected[:, tokens, -heads:], c.dt_scale, c.A,
            B[:, tokens].unflatten(-1, (groups, 128)), c.B_scale.repeat_interleave(128),
            C[:, tokens].unflatten(-1, (groups, 128)), c.C_scale.repeat_interleave(128), c.D, c.dt_bias, 0.0,
            float("inf"), state, c.state_scale[row.long()].view(heads, 64, 128), 64,
        )  # fmt: skip
        return y.flatten(-2), after

    slots = batch + 2
    memory = Memory(
        torch.full((slots, 4, width), 99, dtype=torch.int8).cuda(),
        torch.zeros(slots, heads, 64, 128, dtype=torch.int8).cuda(),
        torch.full((slots, 4, inner, 16), 99, dtype=torch.int8).cuda(),
        torch.full((slots, 64, shared), 99, dtype=torch.int8).cuda(),
        torch.full((slots, 64, heads), torch.nan).cuda(),
    )
    where = torch.arange(slots - 1, 1, -1, dtype=torch.int32).cuda()
    positions = torch.zeros(slots, dtype=torch.int32).cuda()
    found = torch.full((TOKENS, batch, inner), torch.nan).cuda()
    for time in range(TOKENS):
        step(
            projected[:, time].contiguous(),
            where,
            positions,
            c,
            memory,
            sizes,
            (0.0, float("inf")),
            found[time],
        )
        torch.cuda.synchronize()  # a step reads positions ahead
        positions += 1
        if (time + 1) % 64 == 0:
            layered = [
                type(part)(**{name: tensor[None] for name, tensor in vars(part).items()})
                for part in (c, memory)
            ]
            round_states(where, *layered, sizes)
        torch.cuda.synchronize()
    rounded = memory.state[where.long()]
    y, after = reference(slice(0, 64), torch.zeros_like(rounded))
    assert_requantised(rounded, after, "state")
    # From the state as it was rounded here: a code that fell on the other side is no error of the tokens after it.
    y = torch.cat([y, reference(slice(64, TOKENS), rounded)[0]], dim=1)
    for time in range(TOKENS):
        assert_float32(found[time], y[:, time], TOKENS * 128, f"y of token {time}")


@pytest.mark.parametrize("m", [1, 2, 16, 64, 130])
@pytest.mark.parametrize("op", ["int8_linear", "int4_linear", "int4_progressive_linear"])
@pytest.mark.parametrize(("n", "k"), [(1032, 2560), (640, 2048)])  # codes out; added to a residual
def test_every_tile_of_a_linear_layer_is_the_reference(op: str, m: int, n: int, k: int) -> None:
    from ssmquant.ops.linear_tuning import Product, Setup, candidates

    product = Product(op, m, n, k)
    setup = Setup(product, torch.device("cuda"), copies=1)
    expected = setup.expected()
    for tile in (None, *candidates(product)):
        for _ in range(2):  # the second launch finds counters as the first left them
            setup.result.zero_()
            setup.launches(tile)[0]()
            assert torch.equal(setup.result, expected), tile
