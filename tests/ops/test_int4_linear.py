"""`int4_linear` against integers: the packing byte by byte, the sums exactly, every float32 rounding in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from ssmquant import numerics
from ssmquant.errors import InputError
from ssmquant.ops.int4_linear import int4_linear
from ssmquant.ops.int4_linear.packing import pack_int4, unpack_int4
from ssmquant.ops.int8_linear import int8_linear

Array = np.ndarray[Any, Any]
F = np.float32
int4_codes = st.integers(-8, 7)
quick = settings(deadline=None, max_examples=40)  # a shared machine has slow moments


# The packing


@pytest.mark.parametrize(
    ("codes", "golden"),
    [
        ([-3, 7], [0x7D]),
        ([7, -3], [0xD7]),
        ([0, 1], [0x10]),
        ([1, 0], [0x01]),
        ([-1, -1], [0xFF]),
        ([-7, 7, 7, -7], [0x79, 0x97]),
        ([-8, 0, 0, -8], [0x08, 0x80]),
        ([1, 2, 3, 4, 5, 6], [0x21, 0x43, 0x65]),
    ],
)
def test_golden_bytes(codes: list[int], golden: list[int]) -> None:
    packed = pack_int4(torch.tensor([codes], dtype=torch.int8))
    assert packed.dtype == torch.uint8
    assert packed.tolist() == [golden]
    assert unpack_int4(packed).tolist() == [codes]


@st.composite
def code_rows(draw: st.DrawFn) -> Tensor:
    rows, pairs = draw(st.integers(0, 4)), draw(st.integers(0, 9))
    values = draw(st.lists(int4_codes, min_size=rows * 2 * pairs, max_size=rows * 2 * pairs))
    return torch.tensor(values, dtype=torch.int8).view(rows, 2 * pairs)


@quick
@given(code_rows())
def test_packing_is_undone(codes: Tensor) -> None:
    packed = pack_int4(codes)
    assert packed.shape == (codes.shape[0], codes.shape[1] // 2)
    assert unpack_int4(packed).dtype == torch.int8
    assert torch.equal(unpack_int4(packed), codes)


@quick
@given(st.lists(st.integers(0, 255), max_size=20))
def test_every_byte_is_a_pair_of_codes(values: list[int]) -> None:
    packed = torch.tensor([values], dtype=torch.uint8)
    assert torch.equal(pack_int4(unpack_int4(packed)), packed)


def test_packing_takes_codes_in_any_layout() -> None:
    codes = torch.arange(-8, 8, dtype=torch.int8).view(8, 2)
    assert torch.equal(unpack_int4(pack_int4(codes.T)), codes.T)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int8), "an even number of codes, got 3"),
        (torch.tensor([[0, 8]], dtype=torch.int8), r"must be in \[-8, 7\], found 0 to 8"),
        (torch.tensor([[-9, 1]], dtype=torch.int8), r"must be in \[-8, 7\], found -9 to 1"),
        (torch.zeros(2, 4, dtype=torch.int64), r"must be torch\.int8, got torch\.int64"),
        (torch.zeros(2, 4), r"must be torch\.int8, got torch\.float32"),
    ],
)
def test_what_does_not_fit_four_bits_is_refused(codes: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_int4(codes)


# The op


class Case(NamedTuple):
    """Arguments of the op."""

    x: Tensor
    x_scale: Tensor
    packed: Tensor
    weight_scale: Tensor
    bias: Tensor | None = None
    scale_out: Tensor | None = None


def case(
    seed: int, *tokens: int, rows: int, groups: int, size: int, per_token: bool = False, bias: bool = True
) -> Case:
    random, columns = torch.Generator().manual_seed(seed), groups * size

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random) * 0.9 + 0.1

    return Case(
        torch.randint(-127, 128, (*tokens, columns), generator=random, dtype=torch.int8),
        uniform(*tokens, 1) if per_token else uniform(1),
        pack_int4(torch.randint(-7, 8, (rows, columns), generator=random, dtype=torch.int8)),
        uniform(rows, groups) / 7,
        torch.randn(rows, generator=random) * 50 if bias else None,
    )


cases = st.builds(
    lambda seed, tokens, rows, groups, half, per_token, bias: case(
        seed, tokens, rows=rows, groups=groups, size=2 * half, per_token=per_token, bias=bias
    ),
    *(st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(1, 9)),
    *(st.booleans(), st.booleans()),
)


def code(packed: Array, n: int, k: int) -> int:
    byte = int(packed[n, k // 2])
    nibble = byte >> 4 if k % 2 else byte & 15
    return nibble - 16 if nibble > 7 else nibble


def group_sum(args: Case, m: int, n: int, g: int) -> int:
    """Return one group's sum in Python's integers."""
    x, packed = args.x.numpy(), args.packed.numpy()
    size = x.shape[-1] // args.weight_scale.shape[1]
    return sum(int(x[m, k]) * code(packed, n, k) for k in range(g * size, (g + 1) * size))


def literal(args: Case) -> Tensor:
    """Return float results one number at a time, in the order that the reference states."""
    tokens, rows = args.x.shape[0], args.packed.shape[0]
    scale, x_scale = args.weight_scale.numpy(), args.x_scale.expand(tokens, 1).numpy()
    y = np.empty((tokens, rows), dtype=F)
    for m in range(tokens):
        for n in range(rows):
            total = F(0)
            for g in range(scale.shape[1]):
                product = F(F(group_sum(args, m, n, g)) * scale[n, g])
                total = F(total + product)
            value = F(total * x_scale[m, 0])
            y[m, n] = value if args.bias is None else F(value + args.bias.numpy()[n])
    return torch.from_numpy(y)


@quick
@given(cases)
def test_every_bit_is_that_of_the_stated_order(args: Case) -> None:
    assert torch.equal(int4_linear(*args), literal(args))


@quick
@given(cases)
def test_every_group_is_an_exact_integer(args: Case) -> None:
    one = torch.ones(1)
    for g in range(args.weight_scale.shape[1]):
        only = torch.zeros_like(args.weight_scale)
        only[:, g] = 1.0
        y = int4_linear(args.x, one, args.packed, only, None, None)
        sums = [
            [group_sum(args, m, n, g) for n in range(args.packed.shape[0])] for m in range(args.x.shape[0])
        ]
        assert y.tolist() == sums


@pytest.mark.parametrize("sign", [1, -1])
def test_a_sum_beyond_24_bits_is_rounded_once(sign: int) -> None:
    columns = 32_770
    x = torch.full((1, columns), 127 * sign, dtype=torch.int8)
    codes = torch.full((1, columns), -7, dtype=torch.int8)
    codes[0, -1] = 6
    exact = sign * 127 * (-7 * (columns - 1) + 6)
    assert abs(exact) > 2**24
    y = int4_linear(x, torch.ones(1), pack_int4(codes), torch.ones(1, 1), None, None)
    assert y.item() == F(exact)


@quick
@given(cases, st.floats(0.01, 100.0))
def test_codes_out_are_the_quantised_floats(args: Case, size: float) -> None:
    floats = int4_linear(*args)
    for scale in (torch.tensor([size]), torch.linspace(0.5, 2.0, args.packed.shape[0]) * size):
        codes = int4_linear(*args._replace(scale_out=scale))
        assert codes.dtype == torch.int8
        assert torch.equal(codes, numerics.quantize(floats, scale))


@quick
@given(cases)
def test_a_token_is_scaled_by_its_own_scale(args: Case) -> None:
    """A token gives the same bits alone, with its scale as the static one."""
    y = int4_linear(*args)
    scales = args.x_scale.expand(len(args.x), 1)
    for m in range(len(args.x)):
        alone = int4_linear(*args._replace(x=args.x[m], x_scale=scales[m]))
        assert torch.equal(alone, y[m])


def test_the_bias_is_added_once_and_last() -> None:
    args = case(0, 3, rows=5, groups=2, size=4)
    assert args.bias is not None
    assert torch.equal(int4_linear(*args), int4_linear(*args._replace(bias=None)) + args.bias)


def test_one_group_is_the_int8_layer_of_the_same_codes() -> None:
    """With scales that are powers of two no rounding tells the two ops apart."""
    args = case(1, 6, rows=7, groups=1, size=24)
    scale = torch.tensor([2.0 ** (n % 3 - 4) for n in range(7)])
    y = int4_linear(args.x, torch.tensor([0.25]), args.packed, scale[:, None], args.bias, None)
    same = int8_linear(args.x, torch.tensor([0.25]), unpack_int4(args.packed), scale, args.bias, None)
    assert torch.equal(y, same)


def test_the_contract_of_torch_library() -> None:
    args = case(2, 2, 3, rows=5, groups=3, size=6, per_token=True)
    for arguments in (args, args._replace(bias=None), args._replace(scale_out=torch.tensor([0.5]))):
        opcheck(torch.ops.ssmquant.int4_linear.default, tuple(arguments))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(2, 8)}, r"x must be torch\.int8, got torch\.float32"),
        (
            {"x": torch.zeros(2, 7, dtype=torch.int8)},
            "K = 7 is odd, but a byte holds two codes; add a column of zeros",
        ),
        ({"x": torch.zeros(2, 6, dtype=torch.int8)}, r"packed must have shape \[any, 3\], got \[3, 4\]"),
        ({"packed": torch.zeros(3, 4, dtype=torch.int8)}, r"packed must be torch\.uint8, got torch\.int8"),
        ({"packed": torch.zeros(3, 8, dtype=torch.uint8)}, r"packed must have shape \[any, 4\], got \[3, 8\]"),
        ({"x_scale": torch.ones(8)}, r"\[1\] \(static\) or \[2, 1\] \(per token\), got \[8\]; a scale a channel"),
        ({"x_scale": torch.ones(2)}, r"x_scale must have shape \[1\] \(static\) or \[2, 1\]"),
        ({"x_scale": torch.ones(1).double()}, r"x_scale must be torch\.float32, got torch\.float64"),
        ({"weight_scale": torch.ones(3)}, r"weight_scale must have shape \[3, any\], got \[3\]"),
        ({"weight_scale": torch.ones(2, 2)}, r"weight_scale must have shape \[3, any\], got \[2, 2\]"),
        ({"weight_scale": torch.ones(3, 3)}, r"3 groups, which do not divide K = 8; it must be \[N, K / group_size\]"),
        ({"weight_scale": torch.ones(3, 0)}, "0 groups, which do not divide K = 8"),
        ({"weight_scale": torch.ones(3, 2).half()}, r"weight_scale must be torch\.float32, got torch\.float16"),
        ({"bias": torch.ones(2)}, r"bias must have shape \[3\], got \[2\]"),
        ({"bias": torch.ones(3).half()}, r"bias must be torch\.float32, got torch\.float16"),
        ({"scale_out": torch.ones(2)}, r"scale_out must have shape \[1\] or \[3\], got \[2\]"),
    ],
)  # fmt: skip
def test_unfit_arguments_are_refused(changes: dict[str, Tensor], message: str) -> None:
    args = case(3, 2, rows=3, groups=2, size=4)
    assert int4_linear(*args).shape == (2, 3)
    with pytest.raises(InputError, match=f"int4_linear: .*{message}"):
        int4_linear(*args._replace(**changes))


# Shown to go red


def swapped(packed: Tensor) -> Tensor:
    return (packed >> 4) | (packed << 4)


def zero_based(packed: Tensor) -> Tensor:
    """Codes as if they were stored plus 8, as other libraries store them."""
    return packed ^ 0x88


WRONG: dict[str, Callable[[Case], Tensor]] = {
    "nibbles swapped": lambda a: int4_linear(*a._replace(packed=swapped(a.packed))),
    "nibbles without a sign": lambda a: int4_linear(*a._replace(packed=zero_based(a.packed))),
    "scales of the groups in reverse": lambda a: int4_linear(
        *a._replace(weight_scale=a.weight_scale.flip(1))
    ),
    "scales of interleaved groups": lambda a: int4_linear(
        *a._replace(weight_scale=a.weight_scale.view(-1, 2, 3).mT.reshape(-1, 6))
    ),
    "no bias": lambda a: int4_linear(*a._replace(bias=None)),
    "the first token's scale": lambda a: int4_linear(*a._replace(x_scale=a.x_scale[:1, 0])),
    # Right but for the order of its roundings:
    "groups added from the last": lambda a: int4_linear(
        *a._replace(
            x=a.x.unflatten(1, (6, -1)).flip(1).flatten(1),
            packed=a.packed.unflatten(1, (6, -1)).flip(1).flatten(1),
            weight_scale=a.weight_scale.flip(1),
        )
    ),
    "scaled before the sum": lambda a: (
        int4_linear(*a._replace(x_scale=torch.ones(1), weight_scale=a.weight_scale * 0.3, bias=None)) + a.bias
    ),
    "in float64": lambda a: (
        (a.x.double() * a.x_scale)
        @ (unpack_int4(a.packed).unflatten(1, (6, -1)) * a.weight_scale.double()[..., None]).flatten(1).T
        + a.bias
    ).float(),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_answer_is_seen(name: str) -> None:
    args = case(4, 8, rows=16, groups=6, size=8, per_token=True)
    if name == "scaled before the sum":
        args = args._replace(x_scale=torch.tensor([0.3]))
    expected = literal(args)
    assert torch.equal(int4_linear(*args), expected)
    assert not torch.equal(WRONG[name](args), expected)
