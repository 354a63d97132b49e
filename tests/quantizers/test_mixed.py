"""Mixed quantizers: which channels are outliers, nearest codes written out, and what GPTQ gains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmquant.errors import SsmquantError
from ssmquant.formats import Codes, restored
from ssmquant.quantizers import gptq, mixed_gptq, mixed_rtn, round_to_nearest
from ssmquant.quantizers.mixed import channel_order
from ssmquant.scheme import Granularity, MixedPrecision, TensorScheme

ROWS, SIZE, OUTLIERS, COLUMNS = 10, 8, 6, 38


def scheme(clip: float = 1.0) -> TensorScheme:
    mixed = MixedPrecision(outliers=OUTLIERS, activation_bits=4, weight_clip=clip)
    return TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=SIZE, mixed=mixed)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a weight and the second moment of inputs whose channels go together and are of unlike size."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(200, COLUMNS, generator=random) @ torch.randn(COLUMNS, COLUMNS, generator=random)
    x = x * torch.logspace(-1, 1, COLUMNS)[torch.randperm(COLUMNS, generator=random)]
    return torch.randn(ROWS, COLUMNS, generator=random), x.double().T @ x.double()


def loss(weight: Tensor, codes: Codes, hessian: Tensor) -> float:
    """Return the squared error of the outputs."""
    error = (restored(codes, scheme()) - weight).double()
    return float(((error @ hessian) * error).sum())


def test_channels_go_by_their_sum_of_squares() -> None:
    diagonal = torch.tensor([3.0, 9.0, 0.0, 4.0, 3.0, 0.0])
    order = channel_order(torch.full((6, 6), 50.0, dtype=torch.float64).fill_diagonal_(0) + diagonal.diag())
    assert order.dtype == torch.int32
    assert order.tolist() == [2, 5, 0, 4, 3, 1]


@pytest.mark.parametrize("clip", [1.0, 0.85])
def test_nearest_codes_are_those_written_out(clip: float) -> None:
    weight, hessian = drawn()
    found = mixed_rtn(weight, hessian, scheme(clip))
    order = np.argsort(hessian.diagonal().numpy(), kind="stable")
    ordered = weight.numpy()[:, order]
    assert found.order is not None and found.outliers is not None
    assert found.order.tolist() == order.tolist()
    for row in range(ROWS):
        for group in range(4):
            part = ordered[row, group * SIZE : (group + 1) * SIZE]
            scale = np.float32(np.float64(np.abs(part).max()) * clip / 7)
            codes = np.clip(np.rint(part * (np.float32(1) / scale)), -7, 7)
            assert found.scale[row, group].item() == scale
            assert found.codes[row, group * SIZE : (group + 1) * SIZE].tolist() == codes.tolist()
        part = ordered[row, -OUTLIERS:]
        scale = np.float32(
            np.float64(np.abs(part).max()) / 127
        )  # eight bits have nothing to gain from clipping
        assert found.outliers.scale[row].item() == scale
        assert found.outliers.codes[row].tolist() == np.rint(part * (np.float32(1) / scale)).tolist()


@pytest.mark.parametrize("seed", range(3))
def test_gptq_keeps_outputs_better_than_nearest_codes(seed: int) -> None:
    weight, hessian = drawn(seed)
    nearest = loss(weight, mixed_rtn(weight, hessian, scheme()), hessian)
    assert loss(weight, mixed_gptq(weight, hessian, scheme()), hessian) < 0.5 * nearest


def test_outliers_make_up_for_what_the_other_channels_lose() -> None:
    """GPTQ over the ordinary channels alone, with the outliers' nearest codes beside them, leaves more."""
    left = {"apart": 0.0, "together": 0.0}
    for seed in range(5):
        weight, hessian = drawn(seed)
        order = channel_order(hessian).long()
        ordered, n = weight[:, order], COLUMNS - OUTLIERS
        alone = gptq(ordered[:, :n], hessian[order][:, order][:n, :n], scheme())
        nearest = round_to_nearest(ordered[:, n:], TensorScheme(granularity=Granularity.PER_CHANNEL))
        left["apart"] += loss(weight, alone._replace(order=order.int(), outliers=nearest), hessian)
        left["together"] += loss(weight, mixed_gptq(weight, hessian, scheme()), hessian)
    assert left["together"] < 0.9 * left["apart"]


def test_the_fitted_outliers_are_the_best_ones() -> None:
    """Given the other channels' codes, no outlier weights leave less, up to damping and the rounding to eight bits."""
    weight, hessian = drawn()
    found = mixed_gptq(weight, hessian, scheme())
    order = channel_order(hessian).long()
    error = (restored(found, scheme()) - weight).double()[:, order]
    h, n = hessian[order][:, order], COLUMNS - OUTLIERS
    best = error.clone()
    best[:, n:] = -error[:, :n] @ h[:n, n:] @ torch.linalg.inv(h[n:, n:])
    least, reached = (float(((e @ h) * e).sum()) for e in (best, error))
    assert least <= reached < 1.2 * least


@pytest.mark.parametrize("quantizer", [mixed_rtn, mixed_gptq])
def test_the_channels_may_come_in_any_order(quantizer: object) -> None:
    assert callable(quantizer)
    weight, hessian = drawn()
    places = torch.randperm(COLUMNS, generator=torch.Generator().manual_seed(5))
    here = quantizer(weight, hessian, scheme())
    there = quantizer(weight[:, places], hessian[places][:, places], scheme())
    assert torch.equal(places[there.order.long()], here.order.long())
    assert torch.equal(there.codes, here.codes)
    assert torch.equal(there.outliers.codes, here.outliers.codes)


def test_channels_that_were_never_seen_get_codes_too() -> None:
    weight, hessian = drawn()
    hessian[:3], hessian[:, :3] = 0.0, 0.0
    for second_moment in (hessian, torch.zeros_like(hessian)):
        found = mixed_gptq(weight, second_moment, scheme())
        seen = restored(found, scheme())[:, :3] - weight[:, :3]
        assert seen.abs().max() <= weight.abs().max() / 7
    assert found.order is not None
    assert found.order.tolist() == list(range(COLUMNS))


def test_a_second_moment_out_of_range_is_refused() -> None:
    weight, hessian = drawn()
    hessian[3, 3] = float("nan")
    with pytest.raises(SsmquantError, match="NaN or infinity"):
        mixed_gptq(weight, hessian, scheme())
