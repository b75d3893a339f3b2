import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.types import infer
from tests.models import model, random

FLOAT = ir.DataType.FLOAT


def inferred(body: str, **weights) -> dict[str, ir.Value]:
    loaded = io.load(model(body, **weights))
    infer(loaded)
    return {str(value.name): value for node in loaded.graph for value in node.outputs}


def test_shapes_and_types_are_inferred():
    values = inferred("(float[N,3] x) => (float[N,2] y) { a = Relu(x) y = MatMul(a, w) }", w=random(3, 2))
    assert (values["a"].dtype, values["a"].shape.rank()) == (FLOAT, 2)


@pytest.mark.parametrize(
    "nodes", ["b = MeanVarianceNormalization(a)", "b = Reshape(a, rank3)"], ids=["function", "size"]
)
def test_node_that_inference_gives_up_at_hides_no_other_value(nodes):
    """The second: a shape that does not fit, which only the runtime finds."""
    weights = {"rank3": random(3).astype("int64")} if "rank3" in nodes else {}
    values = inferred(f"(float[2,3] x) => (float[N,M] y) {{ a = Relu(x) {nodes} c = Relu(b) y = Neg(c) }}", **weights)
    assert values["a"].shape.rank() == 2
    assert {values[name].dtype for name in "abcy"} == {FLOAT}


def test_types_of_different_kinds_are_kept_apart():
    values = inferred(
        "(float[N,3] x) => (int64[N] y) { b = MeanVarianceNormalization(x) y = ArgMax<axis=1, keepdims=0>(b) }"
    )
    assert (values["b"].dtype, values["y"].dtype) == (FLOAT, ir.DataType.INT64)


@pytest.mark.parametrize("stated", [["N", 2, 2], [None, 7], [5, 2]], ids=["rank", "size", "batch"])
def test_shape_that_the_model_states_wrongly_is_corrected(stated):
    proto = model("(float[4,3] x) => (float[N,2] y) { a = MatMul(x, w) y = Relu(a) }", w=random(3, 2))
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, stated))
    loaded = io.load(proto)
    infer(loaded)
    assert list(loaded.graph[0].outputs[0].shape) == [4, 2]


def test_shape_that_only_the_model_knows_is_kept():
    nodes = "a = Compress<axis=0>(x, keep) b = Relu(a) y = Relu(b)"
    proto = model(f"(float[4,3] x, bool[4] keep) => (float[M,3] y) {{ {nodes} }}")
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [2, 3]))
    loaded = io.load(proto)
    infer(loaded)
    assert list(loaded.graph[0].outputs[0].shape) == [2, 3]


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("nodes", ["y = {}(x, w)", "a = Relu(x) y = {}(a, w)"], ids=["input", "computed"])
@pytest.mark.parametrize("shape", ["N,4", "N,4,8", "N,4,8,8,8"])
def test_convolution_of_data_with_other_axes_than_its_weight_is_refused(operator, nodes, shape):
    proto = model(f"(float[{shape}] x) => (float[A,B,C,D] y) {{ {nodes.format(operator)} }}", w=random(4, 4, 3, 3))
    with pytest.raises(InputError, match=f"{operator} .* reads data of {shape.count(',') + 1} axes with a weight of 4"):
        infer(io.load(proto))


def test_shapes_from_before_the_batch_was_freed_do_not_count():
    proto = model(
        "(float[N,3] x) => (float[N,6] y) { m = MatMul(x, w) r = Reshape(m, s) y = Relu(r) }",
        w=random(3, 6),
        s=np.array([-1, 6]),
    )
    for name in (
        "m",
        "r",
    ):  # inference cannot tell the size of r: only m gives it away
        proto.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 6]))
    loaded = ir.from_proto(proto)
    infer(loaded)
    assert [not isinstance(node.outputs[0].shape[0], int) for node in loaded.graph] == [True, True, True]
