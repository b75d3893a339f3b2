import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxqat.graph import io
from onnxqat.insertion.groups import Group, Skip
from onnxqat.insertion.patterns.weighted import match
from onnxqat.insertion.preparation import prepare
from onnxqat.targets.openvino import TARGET as OPENVINO
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU
from tests.insertion.cases import image
from tests.models import model, random


def matched(proto: onnx.ModelProto, op_type: str, target=ORT_CPU) -> Group | Skip:
    (node,) = [n for n in prepare(proto).graph if n.op_type == op_type]
    return match(node, target)


def rank2(nodes: str, **weights) -> onnx.ModelProto:
    return model(f"(float[N,3] x) => (float[N,4] y) {{ {nodes} }}", **weights)


@pytest.mark.parametrize(
    ("proto", "op_type", "axis"),
    [
        (image("y = Conv(x, w, b)"), "Conv", 0),
        (image("y = ConvTranspose(x, w, b)"), "ConvTranspose", 1),
        (rank2("y = Gemm(x, w)", w=random(3, 4)), "Gemm", 1),
        (rank2("y = Gemm<transB=1>(x, w)", w=random(4, 3)), "Gemm", 0),
        (rank2("y = MatMul(x, w)", w=random(3, 4)), "MatMul", 1),
        (model("(float[N,5,3] x) => (float[N,5] y) { y = MatMul(x, w) }", w=random(3)), "MatMul", None),
        (model("(float[2,5,3] x) => (float[2,5,4] y) { y = MatMul(x, w) }", w=random(2, 3, 4)), "MatMul", None),
    ],
    ids=["conv", "transposed conv", "gemm", "gemm transB", "matrix", "vector", "batch of matrices"],
)
def test_weight_axis_counts_output_channels(proto, op_type, axis):
    group = matched(proto, op_type)
    assert isinstance(group, Group)
    assert group.weight_axis == axis


def test_bias_behind_a_matmul_belongs_to_it():
    proto = model(
        "(float[N,5,3] x) => (float[N,5,4] y) { m = MatMul(x, w) y = Add(m, b) }", w=random(3, 4), b=random(4)
    )
    assert matched(proto, "MatMul").writes.name == "y"


def test_residual_behind_a_matmul_does_not_belong_to_it():
    proto = model("(float[N,5,3] x) => (float[N,5,3] y) { m = MatMul(x, w) y = Add(m, x) }", w=random(3, 3))
    assert matched(proto, "MatMul").writes.name == "m"


@pytest.mark.parametrize(
    ("nodes", "reason"),
    [
        ("y = Gemm<alpha=0.5>(x, w)", "alpha is 0.5"),
        ("c = Relu(x) d = ReduceSum<keepdims=1>(c, one) y = Gemm<beta=2.0>(x, w, d)", "beta is 2.0"),
        ("t = Transpose(x) y = Gemm<transA=1>(t, w)", "transposed"),
    ],
)
def test_gemm_that_kernels_do_not_compute_says_why(nodes, reason):
    weights = {"w": random(3, 4), "one": np.array([1], np.int64)}
    used = {name: value for name, value in weights.items() if f" {name}" in nodes}
    skip = matched(rank2(nodes, **used), "Gemm")
    assert isinstance(skip, Skip)
    assert reason in skip.reason


def test_weight_computed_at_run_time_is_skipped_with_its_name():
    skip = matched(model("(float[N,4,8,8] x, float[4,4,3,3] w) => (float[N,4,6,6] y) { y = Conv(x, w) }"), "Conv")
    assert skip.reason == "weight 'w' is computed at run time"


def product(nodes: str) -> onnx.ModelProto:
    return model(f"(float[N,3,3] x, float[N,3,3] z) => (float[N,3,3] y) {{ {nodes} }}")


def test_product_of_two_activations_reads_both():
    group = matched(product("y = MatMul(x, z)"), "MatMul")
    assert [value.name for value in group.reads] == ["x", "z"]
    assert group.weight is None


def test_product_with_attention_probabilities_depends_on_the_target():
    proto = product("s = Softmax(x) y = MatMul(s, z)")
    assert isinstance(matched(proto, "MatMul", ORT_CPU), Group)
    assert "attention" in matched(proto, "MatMul", OPENVINO).reason


def test_constant_on_the_left_is_skipped():
    proto = model("(float[N,3,3] x) => (float[N,3,3] y) { y = MatMul(w, x) }", w=random(3, 3))
    assert "on the left" in matched(proto, "MatMul").reason


def test_data_of_another_type_is_skipped():
    proto = model("(double[N,3] x) => (double[N,4] y) { y = MatMul(x, w) }", w=random(3, 4).astype("float64"))
    assert "not float32" in match(next(iter(io.load(proto).graph)), ORT_CPU).reason


def test_initializer_is_what_the_group_names_as_its_weight():
    group = matched(image("y = Conv(x, w, b)"), "Conv")
    assert isinstance(group.weight, ir.Value)
    assert group.weight.is_initializer()
