from collections import Counter

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.graph import io
from onnxqat.insertion.preparation import prepare
from tests.models import model, operators, outputs

RNG = np.random.default_rng(0)
#: Whole numbers, so that sums are exact in any order.
SIZES = {"a": 2, "b": 3, "c": 4, "d": 5, "e": 6, "h": 2}


def whole(labels: str) -> np.ndarray:
    return RNG.integers(-4, 5, [SIZES[label] for label in labels]).astype(np.float32)


PRODUCTS = {
    "bd,de->be": ["MatMul"],
    "bd,ed->be": ["MatMul"],
    "abd,de->abe": ["MatMul"],
    "abd,dhe->abhe": ["MatMul", "Reshape"],
    "abhe,hed->abd": ["Reshape", "MatMul"],
    "abeh,hed->abd": ["Reshape", "MatMul"],
    "adb,de->aeb": ["Transpose", "MatMul", "Transpose"],
    "adb,de->abe": ["Transpose", "MatMul"],
    "abd,dhe->ahbe": ["MatMul", "Reshape", "Transpose"],
}
KEPT = ["bd,bd->b", "abd,bde->abe", "bd,d->b", "bd,de->e", "bb,de->bde"]


def made(equation: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    (data, held), output = equation.partition("->")[0].split(","), equation.partition("->")[2]
    shape = ", ".join(["N", *(str(SIZES[label]) for label in data[1:])])
    rank = ", ".join(f"o{i}" for i in range(len(output)))
    proto = model(
        f'(float[{shape}] x) => (float[{rank}] y) {{ y = Einsum<equation="{equation}">(x, w) }}', w=whole(held)
    )
    return proto, {"x": whole(data)}


@pytest.mark.parametrize("equation", PRODUCTS)
def test_einsum_of_a_constant_becomes_a_product_of_matrices(equation):
    proto, batch = made(equation)
    result = io.to_proto(prepare(proto))
    onnx.checker.check_model(result, full_check=True)
    assert operators(result) == Counter(PRODUCTS[equation])
    np.testing.assert_array_equal(outputs(result, batch)[0], outputs(proto, batch)[0])


@pytest.mark.parametrize("equation", KEPT)
def test_einsum_that_is_no_product_of_matrices_stays(equation):
    proto, _ = made(equation)
    assert operators(io.to_proto(prepare(proto))) == {"Einsum": 1}


def test_weight_of_an_einsum_is_quantized_for_each_output():
    proto, batch = made("abd,dhe->abhe")
    qdq = onnxqat.insert(proto, [batch])
    scales = {tensor.name: tuple(tensor.dims) for tensor in qdq.graph.initializer if "scale" in tensor.name}
    assert (SIZES["h"] * SIZES["e"],) in scales.values()
