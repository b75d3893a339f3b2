import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.opsets import upgraded
from tests.models import batches, model, operators, outputs, random

LOWERED = {
    "conv": (22, "(float[N,3,6,6] x) => (float[N,4,A,B] y) { a = Conv(x, k) y = Relu(a) }", {"k": random(4, 3, 3, 3)}),
    "hard swish": (22, "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = HardSwish(a) }", {}),
    "global max": (22, "(float[N,3,6,6] x) => (float[N,3,1,1] y) { y = GlobalMaxPool(x) }", {}),
    "movement": (25, "(float[N,8] x) => (float[8,N] y) { a = MatMul(x, w) y = Transpose(a) }", {}),
    "swish": (24, "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Swish<alpha=1.5>(a) }", {}),
    "swish of newest": (25, "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = Swish(a) }", {}),
    "normalization": (
        23,
        "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) y = RMSNormalization<axis=-1>(a, g) }",
        {"g": random(8)},
    ),
    "attention": (
        23,
        """(float[2,5,8] x) => (float[2,5,8] y) { q = MatMul(x, w)
        y = Attention<q_num_heads=2, kv_num_heads=2>(q, x, x) }""",
        {},
    ),
}


@pytest.mark.parametrize(("opset", "body", "weights"), LOWERED.values(), ids=LOWERED)
def test_newer_model_is_lowered_and_answers_alike(opset, body, weights, caplog):
    proto = model(body, opset=opset, ir_version=10, **(weights | {"w": random(8, 8)} if "(x, w)" in body else weights))
    lowered = io.to_proto(io.load(proto))
    assert lowered.opset_import[0].version == 21
    assert f"lowered from opset {opset} to 21" in caplog.text
    onnx.checker.check_model(lowered, full_check=True)
    (batch,) = batches(proto, 1)
    (expected,) = ReferenceEvaluator(proto).run(None, batch)
    np.testing.assert_allclose(outputs(lowered, batch)[0], expected, rtol=1e-4, atol=1e-5)


def test_operators_that_have_no_older_form_are_all_named():
    body = """(float[4,2,8] x, int64[4] i, float[4,2,3] u) => (float[4,2,8] y, int32[4,2,8] z) {
        a = TensorScatter(x, u, i) y = TensorScatter(a, u, i) z = BitCast<to=6>(y) }"""
    proto = model(body, opset=26, ir_version=10)
    with pytest.raises(
        InputError, match=r"opset 26 cannot be lowered to 21, because of BitCast \(1\), TensorScatter \(2\)"
    ):
        io.load(proto)


def test_attribute_that_the_older_form_lacks_is_refused():
    proto = model(
        '(float[N] x) => (float8e8m0[N] y) { y = Cast<to=24, round_mode="nearest">(x) }', opset=24, ir_version=10
    )
    with pytest.raises(InputError, match=r"because of Cast \(1\)"):
        io.load(proto)


IMAGE = "(float[2,4,8,8] x) => (float[A,B,C,D] y)"
UPGRADED = {
    "batch normalization": (7, "n = BatchNormalization(x, g, g, g, v) y = Relu(n)"),
    "broadcasting add": (7, "y = Add(x, c)"),
    "dropout": (7, "d = Dropout<ratio=0.3>(x) y = Relu(d)"),
    "dropout with a mask": (10, "y, mask = Dropout<ratio=0.3>(x)"),
    "upsample by attribute": (7, 'y = Upsample<mode="nearest", scales=[1.0, 1.0, 2.0, 2.0]>(x)'),
    "upsample by input": (9, 'y = Upsample<mode="nearest">(x, s)'),
    "resize": (10, 'y = Resize<mode="nearest">(x, s)'),
    "slice by attributes": (9, "y = Slice<axes=[2], starts=[1], ends=[5]>(x)"),
    "pad by attributes": (10, 'y = Pad<mode="constant", pads=[0,0,1,1,0,0,1,1], value=0.0>(x)'),
    "clip by attributes": (10, "y = Clip<min=-0.5, max=0.5>(x)"),
    "squeeze by attributes": (11, "a = Unsqueeze<axes=[0]>(x) y = Squeeze<axes=[0]>(a)"),
    "split by attributes": (11, "y, z = Split<axis=1, split=[1, 3]>(x)"),
    "sum by attributes": (11, "y = ReduceSum<axes=[1], keepdims=1>(x)"),
    "softmax over all axes behind": (11, "y = Softmax<axis=1>(x)"),
    "average pool": (7, "y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(x)"),
    "max pool": (7, "y = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)"),
    "flatten": (8, "f = Flatten(x) y = Reshape(f, back)"),
    "transposed convolution": (8, "y = ConvTranspose(x, t)"),
}
OLD_WEIGHTS = {
    "g": random(4),
    "v": np.abs(random(4)) + np.float32(1),
    "c": random(4, 1, 1),
    "s": np.array([1, 1, 2, 2], np.float32),
    "back": np.array([2, 4, 8, 8]),
    "t": random(4, 4, 2, 2),
    "w": random(4, 4, 3, 3),
}


@pytest.mark.parametrize(("opset", "nodes"), UPGRADED.values(), ids=UPGRADED)
def test_older_model_is_upgraded_and_answers_alike(opset, nodes):
    used = {name: array for name, array in OLD_WEIGHTS.items() if f", {name}" in nodes}
    proto = model(f"{IMAGE} {{ {nodes} }}", opset=opset, **used)
    newer = io.to_proto(upgraded(io.load(proto, oldest_opset=7), 17))
    assert newer.opset_import[0].version == 17
    (batch,) = batches(proto, 1)
    np.testing.assert_allclose(outputs(newer, batch)[0], outputs(proto, batch)[0], rtol=1e-5, atol=1e-6)


def test_names_and_listed_weights_survive_an_upgrade():
    proto = model(
        "(float[N,4,8,8] x) => (float[N,4,6,6] y) { a = Conv(x, w) y = Relu(a) }", opset=8, w=OLD_WEIGHTS["w"]
    )
    proto.ir_version = 3  # which lists its initializers among the inputs
    proto.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 4, 3, 3]))
    proto.graph.node[0].name, proto.graph.node[1].name = "stem", "act"
    newer = upgraded(io.load(proto, oldest_opset=7), 17)
    assert [node.name for node in newer.graph] == ["stem", "act"]
    assert [value.name for value in newer.graph.inputs] == ["x", "w"]
    assert np.array_equal(newer.graph.initializers["w"].const_value.numpy(), OLD_WEIGHTS["w"])
    assert operators(io.to_proto(newer)) == {"Conv": 1, "Relu": 1}


def test_operator_that_the_converter_does_not_know_is_named():
    scan = "Scan<num_scan_inputs=1, body=g(float[8] i) => (float[8] o) { o = Relu(i) }>(n, x)"
    proto = model(f"(float[N,M,8] x, string n) => (float[N,M,8] y) {{ y = {scan} }}", opset=8)
    with pytest.raises(InputError, match="the converter does not know Scan of opset 8"):
        upgraded(io.load(proto, oldest_opset=7), 17)
