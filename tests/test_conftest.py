"""The poison that the other tests rely on."""

from __future__ import annotations

import torch


def test_fresh_memory_is_poisoned() -> None:
    integers = torch.zeros(4, dtype=torch.int8)
    assert torch.empty(3, requires_grad=True).isnan().all()
    assert torch.empty_like(torch.ones(2, dtype=torch.bfloat16)).isnan().all()
    assert torch.ones(2).new_empty(5).isnan().all()
    assert torch.empty(2, dtype=torch.complex64).isnan().all()
    assert torch.empty_like(integers).eq(113).all()
    assert integers.new_empty(3, dtype=torch.int32).eq(113).all()


def test_memory_without_values_is_left_alone() -> None:
    assert torch.empty(3, device="meta").is_meta
    assert torch.empty((2, 2), layout=torch.sparse_coo)._nnz() == 0
