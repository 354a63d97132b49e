"""Stages with a weight: what they store, that they store nothing else, and what they compute."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ssmquant import numerics
from ssmquant.errors import RecipeError
from ssmquant.modules.activation import QTensor
from ssmquant.modules.head import Head
from ssmquant.modules.weights import CausalConv1d, Embedding, Linear, RMSNorm, Weight
from ssmquant.ops.causal_conv1d import causal_conv1d
from ssmquant.scheme import FLOAT32, Granularity, TensorScheme
from ssmquant.tolerance import assert_float32

from .build import HALF, ROW, TENSOR, TOKEN, round_to_nearest

INT4 = TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=4)
ASYMMETRIC = TensorScheme(bits=4, granularity="per-group", group_size=4, symmetric=False)
MAKE: dict[str, Callable[[TensorScheme], Weight]] = {
    "linear": lambda scheme: Linear(8, 6, bias=True, scheme=scheme),
    "embedding": lambda scheme: Embedding((6, 8), scheme),
    "conv1d": lambda scheme: CausalConv1d(6, 4, bias=True, scheme=scheme),
}
INTEGER = [
    pytest.param(stage, scheme, id=f"{stage} {scheme.short()}")
    for stage in MAKE
    for scheme in (TENSOR, ROW, *([] if stage == "conv1d" else [INT4]))
]
EVERY = INTEGER + [
    pytest.param(stage, scheme, id=f"{stage} {scheme.short()}")
    for stage in MAKE
    for scheme in (FLOAT32, HALF)
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def filled(stage: str, scheme: TensorScheme) -> Weight:
    """Return a stage of random codes or floats, and a random bias."""
    weight = MAKE[stage](scheme)
    value = draw(*weight.shape)
    if scheme.is_float:
        weight.weight.copy_(value.view(weight.weight.shape))
    elif scheme is INT4:
        weight.get_buffer("packed").copy_(torch.arange(24).view(6, 4) * 11 % 256)
        weight.get_buffer("scale").copy_(draw(6, 2).abs())
    else:
        for name, tensor in weight.format.pack(round_to_nearest(value, scheme)).items():
            weight.get_buffer(name).copy_(tensor.view(weight.get_buffer(name).shape))
    if isinstance(weight, (Linear, CausalConv1d)):
        assert weight.bias is not None
        weight.bias.copy_(draw(6, seed=1))
    return weight


@pytest.mark.parametrize(("stage", "scheme"), INTEGER)
def test_no_float_copy_is_kept(stage: str, scheme: TensorScheme) -> None:
    """Neither in the checkpoint nor beside it: no float tensor is as large as the weight, before and after a run."""
    weight = filled(stage, scheme)
    run(weight)
    elements = weight.shape[0] * weight.shape[1]
    held = [
        *weight.parameters(),
        *weight.buffers(),
        *(v for v in vars(weight).values() if isinstance(v, Tensor)),
    ]
    assert all(t.numel() < elements for t in held if t.is_floating_point())
    codes = [t for t in weight.state_dict().values() if not t.is_floating_point()]
    assert sum(t.nbytes for t in codes) == elements * scheme.bits // 8


@pytest.mark.parametrize(("stage", "scheme"), EVERY)
def test_everything_held_is_stored(stage: str, scheme: TensorScheme) -> None:
    weight = filled(stage, scheme)
    held = {**dict(weight.named_parameters()), **dict(weight.named_buffers())}
    assert weight.state_dict().keys() == held.keys()
    empty = MAKE[stage](scheme)
    empty.load_state_dict(weight.state_dict())
    assert torch.equal(run(empty), run(weight))


@pytest.mark.parametrize(
    ("stage", "scheme", "stored"),
    [
        ("linear", FLOAT32, {"weight": (torch.float32, (6, 8)), "bias": (torch.float32, (6,))}),
        ("linear", HALF, {"weight": (torch.float16, (6, 8)), "bias": (torch.float32, (6,))}),
        (
            "linear",
            ROW,
            {"codes": (torch.int8, (6, 8)), "scale": (torch.float32, (6,)), "bias": (torch.float32, (6,))},
        ),
        (
            "linear",
            INT4,
            {"packed": (torch.uint8, (6, 4)), "scale": (torch.float32, (6, 2)), "bias": (torch.float32, (6,))},
        ),
        ("embedding", TENSOR, {"codes": (torch.int8, (6, 8)), "scale": (torch.float32, (1,))}),
        ("conv1d", FLOAT32, {"weight": (torch.float32, (6, 1, 4)), "bias": (torch.float32, (6,))}),
        (
            "conv1d",
            ROW,
            {"codes": (torch.int8, (6, 1, 4)), "scale": (torch.float32, (6,)), "bias": (torch.float32, (6,))},
        ),
    ],
)  # fmt: skip
def test_names_dtypes_and_shapes_at_rest(stage: str, scheme: TensorScheme, stored: dict[str, object]) -> None:
    """Those of the checkpoint, in which a convolution keeps PyTorch's shape."""
    found = {name: (t.dtype, tuple(t.shape)) for name, t in MAKE[stage](scheme).state_dict().items()}
    assert found == stored


def run(weight: Weight) -> Tensor:
    if isinstance(weight, Embedding):
        found: Tensor = weight(torch.tensor([[0, 5], [3, 3]]))
        return found
    x = QTensor(draw(2, 5, weight.shape[1] if isinstance(weight, Linear) else 6, seed=2), None)
    if isinstance(weight, CausalConv1d):
        y, _ = weight(x, draw(2, 6, 4, seed=3))
        return y.detach()
    y = weight(x)
    return y.detach()


@pytest.mark.parametrize(("stage", "scheme"), EVERY)
def test_a_stage_computes_with_what_it_stands_for(stage: str, scheme: TensorScheme) -> None:
    weight = filled(stage, scheme)
    exact = weight.dequantize().detach().double()
    match weight:
        case Embedding():
            expected = exact[torch.tensor([[0, 5], [3, 3]])]
        case Linear():
            assert weight.bias is not None
            expected = draw(2, 5, 8, seed=2).double() @ exact.T + weight.bias.detach().double()
        case CausalConv1d():
            assert weight.bias is not None
            expected, _ = causal_conv1d(
                draw(2, 5, 6, seed=2).double(), None, exact, None, weight.bias.detach().double(),
                draw(2, 6, 4, seed=3).double(), None,
            )  # fmt: skip
    assert_float32(run(weight), expected, weight.shape[1])


@pytest.mark.parametrize("scheme", [TENSOR, ROW, INT4], ids=lambda scheme: scheme.short())
def test_a_linear_layer_quantises_its_output(scheme: TensorScheme) -> None:
    weight = filled("linear", scheme)
    codes = draw(2, 5, 8, seed=2).mul(40).round().clamp(-127, 127).to(torch.int8)
    x, scale_out = QTensor(codes, torch.tensor([0.025])), torch.linspace(0.01, 0.1, 6)
    assert torch.equal(weight(x, scale_out), numerics.quantize(weight(x), scale_out))


@pytest.mark.parametrize(
    ("stage", "scheme", "message"),
    [
        ("conv1d", INT4, r"'int4 per-group 4' \(format int4\); its formats are dense, int8$"),
        (
            "embedding",
            ASYMMETRIC,
            r"asymmetric' \(format int4-asymmetric\); its formats are dense, int8, int4$",
        ),
    ],
)
def test_a_stage_without_an_op_for_a_format_refuses_it(
    stage: str, scheme: TensorScheme, message: str
) -> None:
    with pytest.raises(RecipeError, match=f"cannot run .* {message}"):
        MAKE[stage](scheme)


def test_a_table_at_rest_in_half_is_read_as_float32() -> None:
    rows = filled("embedding", HALF)(torch.tensor([1]))
    assert rows.dtype == torch.float32
    assert torch.equal(rows, draw(6, 8)[1:2].half().float())


def test_what_a_stage_says_of_itself() -> None:
    assert repr(Linear(8, 6, bias=False, scheme=ROW)) == "Linear(6, 8, int8 per-channel)"


def test_rms_norm_has_unit_mean_square_before_its_gain() -> None:
    norm = RMSNorm(50, eps=0.0)
    nn.init.constant_(norm.weight, 3.0)
    y = norm(draw(4, 50) * 7)
    assert y.pow(2).mean(-1).tolist() == pytest.approx([9.0] * 4, rel=1e-5)
    scale = torch.tensor([0.1])
    assert torch.equal(norm(draw(4, 50), scale), numerics.quantize(norm(draw(4, 50)), scale))


@pytest.mark.parametrize("scheme", [FLOAT32, HALF, TENSOR, ROW], ids=lambda scheme: scheme.short())
@pytest.mark.parametrize("inputs", [FLOAT32, TENSOR, TOKEN], ids=lambda scheme: scheme.short())
def test_a_head_is_a_linear_layer_of_its_own_or_of_the_table(
    scheme: TensorScheme, inputs: TensorScheme
) -> None:
    table = filled("embedding", scheme)
    assert isinstance(table, Embedding)
    tied = Head(8, 6, input_scheme=inputs, weight_scheme=scheme, tied_to=table)
    own = Head(8, 6, input_scheme=inputs, weight_scheme=scheme, tied_to=None)
    assert own.linear is not None
    own.linear.load_state_dict(table.state_dict())
    for head in (tied, own):
        for buffer in head.input.buffers():
            buffer.fill_(0.03)
    hidden = draw(2, 3, 8, seed=4)
    seen = tied.input(hidden).dequantize()
    logits = tied(hidden)
    assert torch.equal(logits, own(hidden))
    assert_float32(logits.detach(), seen.double() @ table.dequantize().detach().double().T, 8)


def test_a_tied_head_stores_nothing() -> None:
    table = filled("embedding", ROW)
    assert isinstance(table, Embedding)
    tied = Head(8, 6, input_scheme=FLOAT32, weight_scheme=FLOAT32, tied_to=table)
    assert not tied.state_dict()
    assert not list(tied.parameters())
    assert tied.weight.is_meta
    assert tied.weight.dtype == torch.float32
