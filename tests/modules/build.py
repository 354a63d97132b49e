"""Small random mixers of every kind of scheme: uncommon sizes, gains and biases that matter, calibrated scales.

    mixer = quantised(MAMBA2, "static", hidden)     # the float mixer's weights, rounded to nearest

Codes and scales are chosen here as simply as can be: absmax, and groups that are arbitrary but known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ssmquant import numerics
from ssmquant.formats import Codes
from ssmquant.modules.activation import Activation, QTensor
from ssmquant.modules.mamba1 import Mamba1Dims, Mamba1Mixer, mamba1_sites
from ssmquant.modules.mamba2 import Mamba2Dims, Mamba2Mixer, mamba2_sites
from ssmquant.modules.mixer import LayerSchemes, Mixer, StateSite
from ssmquant.modules.weights import Weight
from ssmquant.scheme import Granularity, TensorScheme
from ssmquant.sites import Site, SiteKind

Dims = Mamba1Dims | Mamba2Dims

MAMBA1 = Mamba1Dims(
    d_model=10, d_inner=20, d_state=4, d_conv=4, dt_rank=3, bias=True, conv_bias=True, dt_B_C_eps=None
)
FALCON = Mamba1Dims(
    d_model=10, d_inner=24, d_state=4, d_conv=3, dt_rank=2, bias=False, conv_bias=True, dt_B_C_eps=1e-6
)
MAMBA2 = Mamba2Dims(
    d_model=12, d_inner=24, d_state=5, d_conv=4, nheads=6, headdim=4, ngroups=2, dt_min=0.01, dt_max=0.4,
    norm_eps=1e-5, bias=True, conv_bias=True,
)  # fmt: skip
ONE_GROUP = Mamba2Dims(
    d_model=10, d_inner=20, d_state=6, d_conv=2, nheads=4, headdim=5, ngroups=1, dt_min=0.0, dt_max=float("inf"),
    norm_eps=1e-5, bias=False, conv_bias=False,
)  # fmt: skip
ALL_DIMS = {"mamba": MAMBA1, "falcon": FALCON, "mamba2": MAMBA2, "one group": ONE_GROUP}

INTERVAL = 4
ROW = TensorScheme(granularity=Granularity.PER_CHANNEL)
TENSOR = TensorScheme()
TOKEN = TensorScheme(granularity=Granularity.PER_TOKEN, dynamic=True)
HALF = TensorScheme(kind="float", bits=16)
STATE_GROUP = TensorScheme(granularity=Granularity.PER_STATE_GROUP)
PIECEWISE = TensorScheme(granularity=Granularity.PER_HEAD_GROUP, head_groups=2, channel_groups=2)
HALF_STATE = HALF.model_copy(update={"interval": INTERVAL})

SiteSchemes = Callable[[Site], TensorScheme | None]


def kinds(weight: TensorScheme | None, activation: SiteSchemes, state: TensorScheme | None) -> SiteSchemes:
    """Return the schemes of a layer from those of its kinds of sites."""

    def of(site: Site) -> TensorScheme | None:
        match site.kind:
            case SiteKind.WEIGHT:
                return weight
            case SiteKind.ACTIVATION:
                return activation(site)
        return state and state.model_copy(update={"interval": INTERVAL})

    return of


def pieces(site: Site) -> TensorScheme:
    if "d_state" in site.dims and "ngroups" in site.dims:
        return STATE_GROUP
    return PIECEWISE if "headdim" in site.dims else TENSOR


def channels_for_scans(site: Site) -> TensorScheme:
    linear = {"in_proj", "x_proj", "dt_proj", "out_proj"}
    return TENSOR if linear & set(site.consumers) else ROW


def linear_inputs(site: Site) -> TensorScheme | None:
    return TOKEN if {"in_proj", "x_proj", "dt_proj", "out_proj"} & set(site.consumers) else None


def every_other(site: Site) -> TensorScheme | None:
    """Static, float and dynamic sites side by side in what one stage writes."""
    return {"x_in": TENSOR, "B_in": None, "C_in": TOKEN, "z": TOKEN, "x": TENSOR, "B": None, "C": ROW}.get(
        site.name
    )


SCHEMES: dict[str, SiteSchemes] = {
    "float": lambda site: None,
    "half weights": kinds(HALF, lambda site: None, None),
    "int8 weights": kinds(ROW, lambda site: None, None),
    "static": kinds(ROW, lambda site: TENSOR, None),
    "static, a scale a tensor, int8 state": kinds(TENSOR, lambda site: TENSOR, TENSOR),
    "static, scales a channel, float16 state": kinds(ROW, channels_for_scans, HALF),
    "piecewise, int8 state": kinds(ROW, pieces, PIECEWISE),
    "dynamic linear inputs": kinds(ROW, linear_inputs, None),
    "dynamic everywhere, int8 state": kinds(ROW, lambda site: TOKEN, ROW),
    "mixed sites": kinds(ROW, every_other, HALF),
}
STATIC = [name for name in SCHEMES if name.startswith(("static", "piecewise"))]


def names(dims: Dims) -> list[str]:
    """Return the names of the schemes that a mixer of these dimensions can have."""
    return [name for name in SCHEMES if isinstance(dims, Mamba2Dims) or "piecewise" not in name]


def sites(dims: Dims) -> tuple[Site, ...]:
    return mamba1_sites(dims) if isinstance(dims, Mamba1Dims) else mamba2_sites(dims)


def layer(dims: Dims, name: str) -> LayerSchemes:
    found = {site.name: SCHEMES[name](site) for site in sites(dims)}
    # The transforms of a layer whose y is an integer, where the size has one.
    hadamard = found["y"] is not None and dims.d_inner in (20, 24)
    return LayerSchemes({site: scheme for site, scheme in found.items() if scheme}, hadamard=hadamard)


def empty(dims: Dims, schemes: LayerSchemes) -> Mixer:
    return Mamba1Mixer(dims, schemes) if isinstance(dims, Mamba1Dims) else Mamba2Mixer(dims, schemes)


def float_mixer(dims: Dims, *, hadamard: bool = False) -> Mixer:
    generator = torch.Generator().manual_seed(11)

    def normal(shape: torch.Size, size: float, middle: float = 0.0) -> Tensor:
        return middle + size * torch.randn(shape, generator=generator)

    mixer = empty(dims, LayerSchemes({}, hadamard=hadamard))
    for name, parameter in mixer.named_parameters():
        last = name.rpartition(".")[2]
        with torch.no_grad():
            if name in ("D", "norm.weight"):
                parameter.copy_(normal(parameter.shape, 0.3, 1.0))
            elif name == "A_log":
                parameter.copy_(normal(parameter.shape, 0.5, 0.5))
            elif name in ("dt_bias", "dt_proj.bias"):
                parameter.copy_(normal(parameter.shape, 1.0, -1.5))
            elif last == "bias":
                parameter.copy_(normal(parameter.shape, 0.3))
            else:
                parameter.copy_(normal(parameter.shape, parameter.shape[-1] ** -0.5))
    return mixer.eval()


def hidden_states(dims: Dims, batch: int, length: int, *, seed: int = 12) -> Tensor:
    return torch.randn(batch, length, dims.d_model, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def quantised(dims: Dims, name: str, hidden: Tensor) -> Mixer:
    """Return the random mixer under the named schemes, with static ranges as found on ``hidden``."""
    schemes = layer(dims, name)
    source = float_mixer(dims, hadamard=schemes.hadamard)
    maxima = observe(source, hidden)
    mixer = empty(dims, schemes).eval()
    tensors: dict[str, Tensor] = {k: v for k, v in source.state_dict().items() if k in mixer.state_dict()}
    for path, module in mixer.named_modules():
        if isinstance(module, Weight) and not module.scheme.is_float:
            original = source.get_submodule(path)
            assert isinstance(original, Weight)
            for tensor, value in module.format.pack(
                round_to_nearest(original.dequantize(), module.scheme)
            ).items():
                tensors[f"{path}.{tensor}"] = value.view(getattr(module, tensor).shape)
        elif isinstance(module, (Activation, StateSite)) and not (
            module.scheme.is_float or module.scheme.dynamic
        ):
            tensors |= {f"{path}.{k}": v for k, v in scales(module, maxima[path]).items()}
    mixer.load_state_dict({name: t.to(mixer.state_dict()[name].dtype) for name, t in tensors.items()})
    return mixer


def observe(mixer: Mixer, hidden: Tensor) -> dict[str, Tensor]:
    """Return the largest magnitude of each channel (row and state channel of a state) of every site."""
    maxima: dict[str, Tensor] = {}

    def hook(path: str) -> Any:
        def see(module: Any, arguments: Any, output: QTensor | Tensor) -> None:
            if isinstance(output, QTensor):
                maxima[path] = output.data.abs().amax(dim=(0, 1))
            else:
                maxima[path] = output.abs().amax(dim=0).flatten(0, -2) * 1.5

        return see

    handles = [
        module.register_forward_hook(hook(path))
        for path, module in mixer.named_modules()
        if isinstance(module, (Activation, StateSite))
    ]
    mixer(hidden)
    for handle in handles:
        handle.remove()
    return maxima


def round_to_nearest(weight: Tensor, scheme: TensorScheme) -> Codes:
    rows = weight.abs().amax(dim=1) if scheme.granularity is Granularity.PER_CHANNEL else weight.abs().amax()
    scale = numerics.scale_from_absmax(rows.reshape(-1), scheme.bits)
    return Codes(numerics.quantize(weight, scale[:, None], scheme.bits), scale)


def groups_of(site: Activation | StateSite) -> Tensor | None:
    """Return a group for each channel: those of B and C by SSD group, heads and channels in turns."""
    dims = site.dims
    match site.scheme.granularity:
        case Granularity.PER_STATE_GROUP:
            return torch.arange(dims["ngroups"]).repeat_interleave(dims["d_state"])
        case Granularity.PER_HEAD_GROUP:
            group, head, channel = torch.meshgrid(
                *(torch.arange(dims[d]) for d in ("ngroups", "heads", "headdim")), indexing="ij"
            )
            return (group * 4 + head % 2 * 2 + channel % 2).flatten()
    return None


def scales(site: Activation | StateSite, maxima: Tensor) -> dict[str, Tensor]:
    group = groups_of(site)
    rows = maxima if maxima.dim() == 2 else maxima[:, None]
    if group is not None:
        found = torch.stack([rows[group == g].amax(dim=0) for g in range(site.scale.shape[0])])
    elif site.scheme.granularity is Granularity.PER_CHANNEL:
        found = rows.amax(dim=1)
    else:
        found = rows.amax()
    scale = numerics.scale_from_absmax(found).reshape(site.scale.shape)
    return {"scale": scale} if group is None else {"scale": scale, "group": group.to(torch.int16)}
