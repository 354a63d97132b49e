"""`clip` against a search written out element by element, and its effect on outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ssmquant.formats import restored
from ssmquant.quantizers import clip, round_to_nearest
from ssmquant.quantizers.clip import output_error
from ssmquant.scheme import Granularity, TensorScheme

SIZE = 8


def scheme(*, symmetric: bool = False) -> TensorScheme:
    return TensorScheme(bits=4, granularity=Granularity.PER_GROUP, group_size=SIZE, symmetric=symmetric)


def heavy(*shape: int, seed: int = 0) -> Tensor:
    """Return weights with a few large ones: a Student distribution of three degrees of freedom."""
    random = torch.Generator().manual_seed(seed)
    return (
        torch.randn(shape, generator=random)
        / torch.randn(*shape, 3, generator=random).square().mean(-1).sqrt()
    )


def inputs(tokens: int, channels: int, seed: int = 1) -> Tensor:
    """Return inputs whose channels go together and are of unlike size."""
    random = torch.Generator().manual_seed(seed)
    mixed = torch.randn(tokens, channels, generator=random) @ torch.randn(
        channels, channels, generator=random
    )
    return mixed * torch.logspace(-1, 1, channels)[torch.randperm(channels, generator=random)]


def output_errors(weight: Tensor, found: Tensor, x: Tensor) -> np.ndarray:
    """Return the squared error of every group's share of every output, summed over tokens: ``[N, groups]``."""
    difference = (found - weight).double().unflatten(1, (-1, SIZE))
    parts = torch.einsum("ngk,tgk->tng", difference, x.double().unflatten(1, (-1, SIZE)))
    return parts.square().sum(dim=0).numpy()


def naive(weight: Tensor, x: Tensor, to: TensorScheme) -> Tensor:
    """Return the restored weight of the best range of each group and row, measured on the tokens themselves."""
    best, least = torch.zeros_like(weight), np.full((weight.shape[0], weight.shape[1] // SIZE), np.inf)
    for step in range(10):
        clipped = weight.clone()
        for row in range(weight.shape[0]):
            for start in range(0, weight.shape[1], SIZE):
                group = clipped[row, start : start + SIZE]
                # In float32, as the zero point of a range clipped on both sides is in the middle of two codes.
                largest = group.abs().max() * (1 - step / 20)
                group.clamp_(-largest, largest)
        found = restored(round_to_nearest(clipped, to), to)
        errors = output_errors(weight, found, x)
        for row, group in zip(*np.nonzero(errors < least), strict=True):
            least[row, group] = errors[row, group]
            part = slice(group * SIZE, (group + 1) * SIZE)
            best[row, part] = found[row, part]
    return best


@pytest.mark.parametrize("symmetric", [False, True])
def test_it_is_the_search_on_the_tokens_themselves(symmetric: bool) -> None:
    weight, x, to = heavy(12, 4 * SIZE), inputs(60, 4 * SIZE), scheme(symmetric=symmetric)
    found = restored(clip(weight, (x.T @ x).double(), to), to)
    assert torch.allclose(found, naive(weight, x, to), atol=1e-5)  # a step is 0.1 and more
    assert not torch.equal(found, restored(round_to_nearest(weight, to), to))


def test_no_group_gets_worse_and_many_get_better() -> None:
    weight, x, to = heavy(64, 8 * SIZE), inputs(200, 8 * SIZE), scheme()
    plain = output_errors(weight, restored(round_to_nearest(weight, to), to), x)
    clipped = output_errors(weight, restored(clip(weight, (x.T @ x).double(), to), to), x)
    assert bool((clipped <= plain * (1 + 1e-4)).all())
    assert float((clipped < 0.9 * plain).mean()) > 0.3


def test_ranges_follow_the_inputs_and_not_the_weights_alone() -> None:
    """The same weights: the large one is kept where its input is large, and clipped where it is small."""
    weight = torch.cat([torch.linspace(-1, 1, SIZE - 1), torch.tensor([2.4])])[None]
    heard, unheard = torch.eye(SIZE), torch.eye(SIZE)
    heard[-1, -1], unheard[-1, -1] = 1e4, 1e-4
    kept, lost = (
        float(restored(clip(weight, h.double(), scheme()), scheme())[0, -1]) for h in (heard, unheard)
    )
    assert kept == pytest.approx(2.4, abs=0.5 * 3.4 / 15)
    assert lost < 2.0


def test_only_the_ratio_of_second_moments_matters() -> None:
    weight, x = heavy(6, 2 * SIZE), inputs(30, 2 * SIZE)
    moment = (x.T @ x).double()
    one, other = clip(weight, moment, scheme()), clip(weight, moment * 2.0**20, scheme())
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scale, other.scale)


def test_unheard_groups_are_rounded_as_they_are() -> None:
    weight = heavy(5, 2 * SIZE)
    found = clip(weight, torch.zeros(2 * SIZE, 2 * SIZE, dtype=torch.float64), scheme())
    assert torch.equal(found.codes, round_to_nearest(weight, scheme()).codes)


def test_rows_are_clipped_as_well() -> None:
    """Int8 rows whose one large weight is hardly heard: all others get finer steps."""
    rows = TensorScheme(granularity=Granularity.PER_CHANNEL)
    weight, moment = heavy(6, SIZE).clamp(-1, 1), torch.eye(SIZE, dtype=torch.float64)
    weight[:, 3], moment[3, 3] = 4.0, 1e-9
    plain, found = round_to_nearest(weight, rows), clip(weight, moment, rows)
    assert bool((found.scale < 0.7 * plain.scale).all())
    heard = torch.arange(SIZE) != 3
    fine, coarse = (((restored(c, rows) - weight)[:, heard]).square().sum() for c in (found, plain))
    assert float(fine) < 0.5 * float(coarse)


def test_the_error_of_an_output_is_a_quadratic_form() -> None:
    difference, x = heavy(3, SIZE), inputs(50, SIZE)
    found = output_error(difference.double(), x.double().T @ x.double())
    assert torch.allclose(found, (x.double() @ difference.double().T).square().sum(dim=0), rtol=1e-9)
