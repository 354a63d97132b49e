from __future__ import annotations

import torch

from ssmquant.observers import AbsMax


def test_the_largest_magnitude_of_each_channel() -> None:
    observer = AbsMax()
    observer.update(torch.tensor([[1.0, -5.0, 0.0], [-2.0, 3.0, 0.0]]))
    observer.update(torch.tensor([[0.5, 4.0, -0.25]]))
    assert observer.value is not None
    assert observer.value.tolist() == [2.0, 5.0, 0.25]


def test_every_dimension_after_the_tokens_is_kept() -> None:
    observer = AbsMax()
    states = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    observer.update(states)
    assert observer.value is not None
    assert torch.equal(observer.value, states.abs().amax(dim=0))


def test_half_precision_is_observed_exactly() -> None:
    observer = AbsMax()
    observer.update(torch.tensor([[0.1], [-0.3]], dtype=torch.float16))
    assert observer.value is not None
    assert observer.value.dtype == torch.float32
    assert observer.value.item() == torch.tensor(0.3, dtype=torch.float16).item()
