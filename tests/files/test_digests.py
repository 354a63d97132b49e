from __future__ import annotations

import hashlib

import pytest
import torch

from ssmquant.files import combined, compare, digest, digests

Tensors = dict[str, torch.Tensor]


def test_the_digest_is_the_documented_one() -> None:
    """Stored digests are compared with those of later versions, so the recipe must not change."""
    raw = b"torch.int16 [2, 2]\n" + bytes([1, 0, 2, 0, 3, 0, 255, 255])
    assert digest(torch.tensor([[1, 2], [3, -1]], dtype=torch.int16)) == hashlib.sha256(raw).hexdigest()[:32]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool],
)
def test_one_bit_changes_the_digest(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, 5).to(dtype)
    changed = tensor.clone()
    changed.view(torch.uint8)[2, -1] ^= 1
    assert digest(tensor) == digest(tensor.clone())
    assert digest(tensor) != digest(changed)


def test_dtype_and_shape_are_part_of_it() -> None:
    zeros = torch.zeros(4, dtype=torch.int32)
    others = [zeros.view(torch.float32), zeros.view(2, 2), zeros.view(torch.int16), zeros[:3]]
    assert len({digest(tensor) for tensor in [zeros, *others]}) == 5


def test_the_sign_of_zero_counts() -> None:
    assert digest(torch.tensor(0.0)) != digest(torch.tensor(-0.0))


def test_the_memory_layout_does_not() -> None:
    tensor = torch.arange(12.0).view(3, 4)
    assert digest(tensor.t().contiguous().t()) == digest(tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_scalars_and_empty_tensors(shape: tuple[int, ...]) -> None:
    assert digest(torch.zeros(shape)) != digest(torch.zeros(1))


def test_a_parameter_has_the_digest_of_its_values() -> None:
    assert digest(torch.nn.Parameter(torch.ones(2))) == digest(torch.ones(2))


def test_combined_does_not_depend_on_order(tensors: Tensors) -> None:
    reversed_order = dict(reversed(tensors.items()))
    assert combined(digests(tensors)) == combined(dict(reversed(digests(reversed_order).items())))


def test_combined_sees_names_and_values(tensors: Tensors) -> None:
    before = digests(tensors)
    renamed = {name.replace("steps", "step"): value for name, value in before.items()}
    swapped = before | {"steps": before["norm_f.weight"], "norm_f.weight": before["steps"]}
    assert len({combined(before), combined(renamed), combined(swapped)}) == 3


def test_compare_names_each_difference(tensors: Tensors) -> None:
    expected = digests(tensors)
    assert compare(expected, digests(tensors)) == []
    tensors["new"] = tensors.pop("steps")
    tensors["norm_f.weight"] += 1
    lines = compare(expected, digests(tensors))
    assert lines[0] == "new: found, but not recorded"
    assert lines[1].startswith(f"norm_f.weight: differs (recorded {expected['norm_f.weight'][:8]}")
    assert lines[2] == "steps: recorded, but missing"
    assert len(lines) == 3
