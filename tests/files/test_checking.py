from __future__ import annotations

import pytest
import torch

from ssmquant.errors import ModelError
from ssmquant.files import TensorSpec, check_tensors

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def specs(tensors: Tensors) -> dict[str, TensorSpec]:
    return {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def refusal(found: Tensors, specs: dict[str, TensorSpec]) -> str:
    with pytest.raises(ModelError) as caught:
        check_tensors(found, specs, source="a-model")
    return str(caught.value)


def test_the_right_tensors_pass(tensors: Tensors, specs: dict[str, TensorSpec]) -> None:
    check_tensors(tensors, specs, source="a-model")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_any_float_where_the_dtype_is_open(dtype: torch.dtype) -> None:
    check_tensors({"w": torch.ones(3, dtype=dtype)}, {"w": TensorSpec((3,))}, source="a-model")
    assert "w: asked a floating-point dtype, found torch.int8" in refusal(
        {"w": torch.ones(3, dtype=torch.int8)}, {"w": TensorSpec((3,))}
    )


def test_a_missing_tensor_and_the_nearest_found(tensors: Tensors, specs: dict[str, TensorSpec]) -> None:
    tensors["layers.0.inproj.weight"] = tensors.pop("layers.0.in_proj.weight")
    said = refusal(tensors, specs)
    assert "a-model: 5 tensors asked, 5 found, 2 problems" in said
    assert "layers.0.in_proj.weight: missing (the nearest found is layers.0.inproj.weight)" in said
    assert "layers.0.inproj.weight: found, but the model has no such tensor" in said


def test_a_tensor_that_is_in_place_is_not_suggested(tensors: Tensors, specs: dict[str, TensorSpec]) -> None:
    specs["layers.1.in_proj.weight"] = TensorSpec((6, 4))
    assert "layers.1.in_proj.weight: missing\n" in refusal(tensors, specs)


def test_a_wrong_shape(tensors: Tensors, specs: dict[str, TensorSpec]) -> None:
    tensors["norm_f.weight"] = tensors["norm_f.weight"][:3]
    assert "norm_f.weight: asked shape (4,), found (3,)" in refusal(tensors, specs)


def test_a_wrong_dtype(tensors: Tensors, specs: dict[str, TensorSpec]) -> None:
    tensors["norm_f.weight"] = tensors["norm_f.weight"].float()
    assert "norm_f.weight: asked torch.float16, found torch.float32" in refusal(tensors, specs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["layers.0.in_proj.weight", "layers.0.norm.weight", "norm_f.weight"])
def test_values_that_are_not_finite(
    tensors: Tensors, specs: dict[str, TensorSpec], name: str, value: float
) -> None:
    tensors[name].view(-1)[-1] = value
    size = tensors[name].numel()
    assert f"{name}: asked finite values, found NaN or infinity in 1 of {size}" in refusal(tensors, specs)


def test_nan_in_one_byte_floats() -> None:
    found = {"w": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)}
    assert "NaN or infinity in 1 of 2" in refusal(found, {"w": TensorSpec((2,))})


def test_all_problems_are_told_at_once(tensors: Tensors, specs: dict[str, TensorSpec]) -> None:
    tensors["norm_f.weight"] = torch.full((2,), float("nan"))
    del tensors["steps"]
    said = refusal(tensors, specs)
    assert "4 problems" in said
    assert all(word in said for word in ("steps: missing", "shape (4,)", "torch.float16", "NaN"))


def test_a_long_list_is_counted(tensors: Tensors, specs: dict[str, TensorSpec]) -> None:
    specs |= {f"layers.{number}.extra": TensorSpec((1,)) for number in range(20)}
    said = refusal(tensors, specs)
    assert said.count(": missing") == 8
    assert "20 problems" in said
    assert "and 12 more" in said
    assert said.endswith("take config.json and the tensors from the same save of the same model")
