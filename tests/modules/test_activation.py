"""Activation sites: what they hold, what fused stages write into them, and what they refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.modules.activation import Activation, QTensor, concatenate, emit, scale_shape
from ssmquant.scheme import FLOAT32, Granularity, TensorScheme

from .build import PIECEWISE, ROW, STATE_GROUP, TENSOR, TOKEN

LUT = TensorScheme(kind="lut", bits=4, granularity=Granularity.PER_CHANNEL)
INNER = {"ngroups": 2, "heads": 3, "headdim": 2}
STATES = {"ngroups": 2, "d_state": 3}
GROUP = torch.tensor([3, 0, 0, 5, 7, 1, 2, 4, 6, 6, 5, 1], dtype=torch.int16)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def activation(
    dims: Mapping[str, int], scheme: TensorScheme, scale: Any = None, group: Any = None
) -> Activation:
    site = Activation(dims, scheme)
    if scale is not None:
        site.scale.copy_(torch.as_tensor(scale))
    if group is not None:
        site.group.copy_(torch.as_tensor(group))
    return site


@pytest.mark.parametrize(
    ("dims", "scheme", "shape"),
    [
        ({"d_model": 7}, TENSOR, (1,)),
        ({"d_model": 7}, ROW, (7,)),
        (INNER, ROW, (12,)),
        (STATES, STATE_GROUP, (2,)),
        ({"d_state": 3}, STATE_GROUP, (1,)),
        (INNER, PIECEWISE, (2 * 2 * 2,)),
        (INNER, PIECEWISE.model_copy(update={"head_groups": 4, "channel_groups": 4}), (2 * 3 * 2,)),
        ({"ngroups": 2, "heads": 3}, PIECEWISE, (2 * 2 * 1,)),
    ],
)
def test_shape_of_static_scales(dims: dict[str, int], scheme: TensorScheme, shape: tuple[int, ...]) -> None:
    assert scale_shape(dims, scheme) == shape
    assert Activation(dims, scheme).scale.shape == shape


@pytest.mark.parametrize(
    ("dims", "scheme", "message"),
    [
        (
            {"d_model": 7},
            STATE_GROUP,
            "per-state-group scales have no meaning for an activation of dimensions",
        ),
        (INNER, STATE_GROUP, "per-state-group scales have no meaning"),
        ({"d_model": 7}, PIECEWISE, "per-head-group scales have no meaning"),
        (STATES, PIECEWISE, "per-head-group scales have no meaning"),
        (INNER, TensorScheme(granularity=Granularity.PER_TOKEN), "per-token scales have no meaning"),
        (
            INNER,
            TensorScheme(granularity=Granularity.PER_GROUP, group_size=4),
            "per-group scales have no meaning",
        ),
        (INNER, TensorScheme(bits=4), "'int4 per-tensor' has no meaning for an activation"),
        (INNER, LUT, "'lut4 per-channel' has no meaning for an activation"),
        (
            INNER,
            TensorScheme(kind="float", bits=16),
            "'float16' has no meaning for an activation; have float32",
        ),
        (INNER, TensorScheme(symmetric=False), "no meaning for an activation with a zero point"),
        (
            INNER,
            TOKEN.model_copy(update={"symmetric": False}),
            "no meaning for an activation with a zero point",
        ),
        (INNER, TensorScheme(interval=4), "'int8 per-tensor every 4' has no meaning"),
    ],
)
def test_schemes_without_a_meaning_are_refused(
    dims: dict[str, int], scheme: TensorScheme, message: str
) -> None:
    """Not taken for what they resemble: static int4 would be clamped as int8, a table would get dynamic codes."""
    with pytest.raises(RecipeError, match=message):
        Activation(dims, scheme)


def test_a_float_site_passes_on() -> None:
    x = draw(2, 3, 12)
    data, scale = activation(INNER, FLOAT32)(x)
    assert data is x
    assert scale is None
    assert activation(INNER, FLOAT32).static_scale is None
    assert not list(activation(INNER, FLOAT32).buffers())


def test_a_static_site_has_its_scale() -> None:
    x = draw(2, 3, 12)
    site = activation(INNER, TENSOR, 0.02)
    assert torch.equal(site(x).data, numerics.quantize(x, torch.tensor([0.02])))
    assert site(x).scale is site.scale


def test_channels_of_a_group_share_its_scale() -> None:
    x, scale = draw(2, 3, 12), torch.logspace(-3, -1, 8)
    site = activation(INNER, PIECEWISE, scale, GROUP)
    expected = torch.tensor([scale[g].item() for g in GROUP.tolist()])
    assert site.static_scale is not None
    assert torch.equal(site.static_scale, expected)
    assert torch.equal(site(x).data, numerics.quantize(x, expected))
    assert torch.equal(site(x).dequantize(), site(x).data * expected)
    assert (site(x).dequantize() - x).abs().max() > 0


def test_a_dynamic_site_looks_at_each_token() -> None:
    x = draw(2, 3, 12) * torch.logspace(-3, 3, 6).view(2, 3, 1)
    for bits in (8, 4):
        site = activation(INNER, TOKEN.model_copy(update={"bits": bits}))
        codes, scale = site(x)
        assert scale is not None
        assert scale.shape == (2, 3, 1)
        assert (codes.abs().amax(-1) == numerics.code_limit(bits)).all()
        assert torch.equal(codes, numerics.quantize(x, scale, bits))
    assert site.static_scale is None


# QTensor


STATIC_T = QTensor(torch.arange(24).view(2, 3, 4).to(torch.int8), torch.tensor([0.5, 1.0, 2.0, 4.0]))
TOKEN_T = QTensor(STATIC_T.data, torch.arange(1.0, 7.0).view(2, 3, 1))
FLOAT_T = QTensor(draw(2, 3, 4), None)


def test_dequantize() -> None:
    assert torch.equal(STATIC_T.dequantize(), STATIC_T.data * torch.tensor([0.5, 1.0, 2.0, 4.0]))
    assert torch.equal(TOKEN_T.dequantize(), TOKEN_T.data * torch.arange(1.0, 7.0).view(2, 3, 1))
    assert FLOAT_T.dequantize() is FLOAT_T.data


def test_scans_and_gates_take_static_scales() -> None:
    assert STATIC_T.for_elementwise() is STATIC_T
    assert FLOAT_T.for_elementwise() is FLOAT_T
    data, scale = TOKEN_T.for_elementwise()
    assert scale is None
    assert torch.equal(data, TOKEN_T.dequantize())


@pytest.mark.parametrize("qtensor", [STATIC_T, TOKEN_T, FLOAT_T], ids=["static", "token", "float"])
def test_some_tokens_are_those_of_the_whole(qtensor: QTensor) -> None:
    for start, stop in ((0, 1), (1, 3), (2, None)):
        part = qtensor.tokens(start, stop)
        assert torch.equal(part.dequantize(), qtensor.dequantize()[:, start:stop])
        alone = part.alone()
        assert torch.equal(alone.dequantize(), part.dequantize())
        assert alone.data.untyped_storage().nbytes() == alone.data.nbytes
    assert qtensor.alone().data is qtensor.data


# emit and concatenate


def sites(*schemes: TensorScheme) -> list[Activation]:
    """Return sites of 12 channels with scales of their own."""
    found = []
    for place, scheme in enumerate(schemes):
        site = Activation(INNER, scheme)
        for name, buffer in site.named_buffers():
            buffer.copy_(
                GROUP if name == "group" else torch.linspace(0.01, 0.05, buffer.numel()) * (place + 1)
            )
        found.append(site)
    return found


class Stage:
    """A stage that quantises as ops do, and notes what it was asked for."""

    def __init__(self, y: Tensor) -> None:
        self.y = y
        self.asked: list[Tensor | None] = []

    def __call__(self, scale_out: Tensor | None) -> Tensor:
        self.asked.append(scale_out)
        return self.y if scale_out is None else numerics.quantize(self.y, scale_out)


@pytest.mark.parametrize(
    "schemes",
    [
        (TENSOR,),
        (ROW,),
        (PIECEWISE,),
        (FLOAT32,),
        (TOKEN,),
        (TENSOR, TENSOR),
        (TENSOR, ROW, PIECEWISE),
        (TENSOR, FLOAT32),
        (FLOAT32, FLOAT32),
        (TOKEN, PIECEWISE, FLOAT32),
    ],
    ids=lambda schemes: ", ".join(scheme.short() for scheme in schemes),
)
def test_emit_equals_a_stage_and_sites_after_it(schemes: tuple[TensorScheme, ...]) -> None:
    y = draw(2, 3, 12 * len(schemes))
    targets, stage = sites(*schemes), Stage(y)
    found = emit(targets, stage)
    expected = [site(part) for site, part in zip(targets, y.split(12, dim=-1), strict=True)]
    for got, want in zip(found, expected, strict=True):
        assert got.data.dtype == want.data.dtype
        assert torch.equal(got.data, want.data)
        assert torch.equal(got.dequantize(), want.dequantize())
    (asked,) = stage.asked
    assert (asked is not None) == all(scheme.is_static_int for scheme in schemes)


def test_a_single_static_site_gets_its_scale_as_it_is() -> None:
    (site,), stage = sites(TENSOR), Stage(draw(2, 3, 12))
    emit([site], stage)
    assert stage.asked[0] is site.scale


def test_several_static_sites_get_a_scale_a_channel() -> None:
    targets, stage = sites(TENSOR, PIECEWISE), Stage(draw(2, 3, 24))
    emit(targets, stage)
    (asked,) = stage.asked
    assert asked is not None
    assert torch.equal(asked[:12], targets[0].scale.expand(12))
    assert torch.equal(asked[12:], targets[1].scale[GROUP.long()])


def test_static_codes_are_joined_as_codes() -> None:
    one = QTensor(STATIC_T.data, torch.tensor([0.25]))
    data, scale = concatenate([one, STATIC_T])
    assert torch.equal(data, torch.cat([STATIC_T.data, STATIC_T.data], dim=-1))
    assert scale is not None
    assert scale.tolist() == [0.25, 0.25, 0.25, 0.25, 0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize("other", [TOKEN_T, FLOAT_T], ids=["token", "float"])
def test_anything_else_is_joined_as_floats(other: QTensor) -> None:
    for parts in ([STATIC_T, other], [other, STATIC_T], [other]):
        data, scale = concatenate(parts)
        assert scale is None
        assert torch.equal(data, torch.cat([part.dequantize() for part in parts], dim=-1))
