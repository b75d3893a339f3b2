"""Targets that take every value as integers (`qnn`): where pairs stand, which grids they have, and what is refused."""

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.config import Config
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.folding import fold
from onnxqat.insertion import insert
from tests.models import array, batches, chain, model, operators, outputs
from tests.models import random as r

CONV = {"w": r(4, 4, 3, 3), "b": r(4), "v": r(4, 4, 1, 1, seed=1)}
IMAGE = "(float[2,4,8,8] x) => (float[2,4,8,8] y)"


def quantized(body: str, *, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    proto = model(body, opset=opset, **weights)
    return insert(proto, batches(proto, 1), Config(target="qnn"))


def grid(proto: onnx.ModelProto, op_type: str) -> tuple[float, int]:
    """Scale and zero point of the pair behind the node of that operator."""
    (computed,) = [node.output[0] for node in proto.graph.node if node.op_type == op_type]
    (pair,) = [node for node in proto.graph.node if node.op_type == "QuantizeLinear" and node.input[0] == computed]
    return float(array(proto, pair.input[1])), int(array(proto, pair.input[2]))


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("c = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(c)", "Q DQ Conv Relu Q DQ"),
        ("c = Conv<pads=[1,1,1,1]>(x, w, b) s = Add(c, x) y = Relu(s)", "Q DQ Conv Q DQ Add Relu Q DQ"),
        ("c = Conv(x, v) s = Sigmoid(c) y = Mul(c, s)", "Q DQ Conv Q DQ Sigmoid Q DQ Mul Q DQ"),
        ("c = Conv(x, v) y = LeakyRelu(c)", "Q DQ Conv Q DQ LeakyRelu Q DQ"),
        ("c = Conv(x, v) r = Relu(c) y = Add(c, r)", "Q DQ Conv Q DQ Relu Q DQ Add Q DQ"),
        ("c = Conv(x, v) y = Transpose<perm=[0,1,3,2]>(c)", "Q DQ Conv Q DQ Transpose Q DQ"),
        ("c = Conv(x, v) r = Relu(c) y = Mul(r, k)", "Q DQ Conv Relu Q DQ Mul Q DQ"),
    ],
)
def test_every_value_has_one_pair_and_only_what_a_quantizer_makes_redundant_has_none(nodes, expected):
    used = {
        name: value for name, value in (CONV | {"k": r(4, 1, 1)}).items() if f"{name}," in nodes or f"{name})" in nodes
    }
    assert chain(quantized(f"{IMAGE} {{ {nodes} }}", **used)) == expected.split()


def test_data_movement_keeps_the_grid_of_its_data():
    qdq = quantized(f"{IMAGE} {{ c = Conv(x, v) y = Transpose<perm=[0,1,3,2]>(c) }}", v=CONV["v"])
    assert grid(qdq, "Transpose") == grid(qdq, "Conv")


@pytest.mark.parametrize(
    ("operator", "expected"), [("Sigmoid", (1 / 255, 0)), ("Softmax", (1 / 255, 0)), ("Tanh", (1 / 127.5, 128))]
)
def test_grids_that_the_npu_demands_are_fixed_and_not_trained(operator, expected):
    body = f"(float[4,4,8,8] x) => (float[4,4,8,8] y) {{ c = Conv(x, v) s = {operator}(c) y = Conv(s, u) }}"
    qdq = quantized(body, v=CONV["v"], u=r(4, 4, 1, 1, seed=2))
    assert grid(qdq, operator) == pytest.approx(expected)
    trainer = onnxqat.Trainer(qdq, loss="mse", optimizer=onnxqat.AdamW(lr=1e-2))
    trainer.step({"x": r(4, 4, 8, 8, scale=1.0), "label": np.zeros((4, 4, 8, 8), np.float32)})
    assert grid(trainer.model(), operator) == pytest.approx(expected)


def test_constant_operands_and_scales_of_normalizations_are_uint8_per_tensor_and_shifts_are_int32():
    body = "(float[2,4,8] x) => (float[2,4,8] y) { m = Mul(x, k) n = LayerNormalization(m, s, b) y = MatMul(n, w) }"
    folded = fold(quantized(body, k=r(8), s=r(8, seed=1) + np.float32(1), b=r(8, seed=2), w=r(8, 8)))
    types = {
        initializer.data_type for initializer in folded.graph.initializer if initializer.name.startswith(("k_q", "s_q"))
    }
    assert types == {onnx.TensorProto.UINT8}
    (shift,) = [i for i in folded.graph.initializer if i.data_type == onnx.TensorProto.INT32]
    assert shift.dims == [8]


def test_gelu_in_many_nodes_becomes_one_of_opset_20():
    body = """(float[2,4,8] x) => (float[2,4,8] y) { m = MatMul(x, w) d = Div(m, root) e = Erf(d) a = Add(e, one) p = Mul(m, a)
        g = Mul(p, half) y = MatMul(g, w) }"""
    constants = {"root": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}
    qdq = quantized(body, w=r(8, 8), **constants)
    assert (operators(qdq)["Gelu"], operators(qdq)["Erf"], qdq.opset_import[0].version) == (1, 0, 20)


def test_layer_normalization_in_many_nodes_becomes_one():
    body = """(float[2,4,8] x) => (float[2,4,8] y) { m = MatMul(x, w) a = ReduceMean<axes=[-1]>(m) d = Sub(m, a) p = Pow(d, two)
        v = ReduceMean<axes=[-1]>(p) e = Add(v, eps) s = Sqrt(e) q = Div(d, s) g = Mul(q, gamma)
        n = Add(g, beta) y = MatMul(n, w) }"""
    constants = {"two": np.float32(2), "eps": np.float32(1e-5), "gamma": r(8, seed=1), "beta": r(8, seed=2)}
    proto = model(body, w=r(8, 8), **constants)
    (node,) = [n for n in quantized(body, w=r(8, 8), **constants).graph.node if n.op_type == "LayerNormalization"]
    assert {a.name: a.f or a.i for a in node.attribute} == {"axis": -1, "epsilon": pytest.approx(1e-5)}
    qdq = insert(proto, batches(proto, 1), Config(target="qnn"))
    np.testing.assert_allclose(outputs(qdq, batches(proto, 1)[0])[0], outputs(proto, batches(proto, 1)[0])[0], atol=0.1)


def test_layer_normalization_whose_parts_are_reshaped_to_sizes_of_the_input_becomes_one():
    body = """(float[N,8] x) => (float[N,8] y) { m = MatMul(x, w) a = ReduceMean<axes=[-1], keepdims=0>(m) z = Shape(x)
        n = Slice(z, zero, one) t = Concat<axis=0>(n, one) f = Reshape(a, t) d = Sub(m, f) p = Mul(d, d)
        v = ReduceMean<axes=[-1]>(p) e = Add(v, eps) s = Sqrt(e) q = Div(d, s) g = Mul(q, gamma) h = Add(g, beta)
        y = MatMul(h, w) }"""
    constants = {"zero": np.array([0]), "one": np.array([1]), "eps": np.float32(1e-5), "gamma": r(8), "beta": r(8)}
    proto = model(body, w=r(8, 8), **constants)
    qdq = insert(proto, batches(proto, 1), Config(target="qnn", fixed_inputs={"N": 4}))
    assert operators(qdq)["LayerNormalization"] == 1
    (batch,) = batches(proto, 1)
    np.testing.assert_allclose(outputs(qdq, batch)[0], outputs(proto, batch)[0], atol=0.1)


def test_cumulative_sums_run_along_the_last_axis_between_two_transposes():
    body = f"{IMAGE} {{ c = Conv(x, v) k = CumSum<reverse=1>(c, axis) y = Conv(k, u) }}"
    weights = {"v": CONV["v"], "u": r(4, 4, 1, 1, seed=2), "axis": np.array(-3)}
    qdq, proto = quantized(body, **weights), model(body, **weights)
    assert " ".join(chain(qdq)) == "Q DQ Conv Q DQ Transpose Q DQ CumSum Q DQ Transpose Q DQ Conv Q DQ"
    (node,) = [node for node in qdq.graph.node if node.op_type == "CumSum"]
    assert array(qdq, node.input[1]) == 3
    batch = batches(proto, 1)[0]
    np.testing.assert_allclose(outputs(qdq, batch)[0], outputs(proto, batch)[0], atol=0.1)


def test_what_only_resembles_gelu_is_left_as_it_is():
    body = """(float[2,4,8] x) => (float[2,4,8] y) { m = MatMul(x, w) d = Div(m, root) e = Erf(d) a = Add(e, one) p = Mul(m, a)
        g = Mul(p, half) y = MatMul(g, w) }"""
    constants = {"root": np.float32(2), "one": np.float32(1), "half": np.float32(0.5)}
    assert operators(quantized(body, w=r(8, 8), **constants))["Erf"] == 1


def test_a_relu_that_its_quantizer_does_not_make_redundant_stays_between_two_pairs():
    qdq = quantized(
        f"{IMAGE} {{ c = Conv(x, v) y = Clip(c, low, high) }}", v=CONV["v"], low=np.float32(0), high=np.float32(0.2)
    )
    for initializer in qdq.graph.initializer:
        if initializer.name == "y_scale":
            initializer.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.001), "y_scale"))
    batch, folded = batches(qdq, 1)[0], fold(qdq)
    assert chain(folded) == ["Q", "DQ", "Conv", "Q", "DQ", "Clip", "Q", "DQ"]
    np.testing.assert_array_equal(outputs(folded, batch), outputs(qdq, batch))


MASKED = {
    "constant": "a = Add(s, m)",
    "chosen": "c = Greater(s, zero) a = Where(c, s, low)",
    "computed": "n = Mul(x, low) u = Unsqueeze(n, axis) o = ReduceMax<keepdims=0>(u, axis) a = Add(s, o)",
}


@pytest.mark.parametrize("mask", MASKED)
def test_masks_of_attention_stay_in_float_up_to_the_softmax(mask):
    nodes = MASKED[mask]
    body = f"(float[2,8,8] x) => (float[2,8,8] y) {{ s = MatMul(x, w) {nodes} p = Softmax(a) y = MatMul(p, w) }}"
    held = {
        "m": np.full((8, 8), -1e9, np.float32),
        "low": np.float32(-1e9),
        "zero": np.float32(0),
        "axis": np.array([1]),
    }
    qdq = quantized(body, opset=18, w=r(8, 8), **{k: v for k, v in held.items() if f" {k})" in nodes})
    assert grid(qdq, "Softmax") == pytest.approx((1 / 255, 0))
    read = {node.op_type: node.input for node in qdq.graph.node}
    assert "_dq" not in read["Softmax"][0]
    scales = [array(qdq, i.name) for i in qdq.graph.initializer if i.name.endswith("_scale")]
    assert max(scale.max() for scale in scales) < 1


FREE = "(float[batch,4,8,8] x) => (float[batch,4,8,8] y)"


def test_sizes_are_free_in_training_and_fixed_in_the_deployed_model():
    body = """(float[batch,4,4,4] x) => (float[batch,F] y) { s = Shape(x) b = Gather(s, zero) n = Concat<axis=0>(b, rest)
        c = Conv(x, v) f = Reshape(c, n) y = Gemm(f, g) }"""
    proto = model(body, zero=np.array([0]), rest=np.array([64]), v=CONV["v"], g=r(64, 3))
    qdq = insert(proto, batches(proto, 1), Config(target="qnn", fixed_inputs={"batch": 1}))
    assert outputs(qdq, batches(proto, 1, rows=5)[0])[0].shape == (5, 3)
    folded = fold(qdq)
    assert [d.dim_value for d in folded.graph.input[0].type.tensor_type.shape.dim] == [1, 4, 4, 4]
    assert not operators(folded).keys() & {"Shape", "Gather"}
    assert outputs(folded, batches(proto, 1, rows=1)[0])[0].shape == (1, 3)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_a_size_that_none_can_have_is_refused(value):
    proto = model(f"{FREE} {{ y = Conv(x, v) }}", v=CONV["v"])
    with pytest.raises(InputError, match="'batch': is a size of the inputs"):
        insert(proto, [], Config(target="qnn", fixed_inputs={"batch": value}))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (f"{FREE} {{ y = Conv(x, v) }}", r"input 'x': size 'batch' of axis 0 is free.*--fix-input 'batch=1'"),
        ("(float[?,4,8,8] x) => (float[N,4,8,8] y) { y = Conv(x, v) }", r"size 'x\[0\]' of axis 0 is free"),
        (
            "(float[2,4,8,8] x) => (float[2,1,1,4,8,8] y) { c = Conv(x, v) y = Unsqueeze(c, axes) }",
            "Unsqueeze 'Unsqueeze': has 6 axes at 'y', and the NPU takes 5",
        ),
        (
            "(float[1,4,8,8] x) => (float[1,4,N,8] y) { c = Conv(x, v) y = Compress<axis=2>(c, which) }",
            "Compress.*size of its output",
        ),
        (
            "(float[1,4,8,8] x) => (float[1,4,10,10] y) { y = ConvTranspose<dilations=[2,2]>(x, u) }",
            "ConvTranspose 'ConvTranspose': is dilated",
        ),
    ],
)
def test_a_model_that_the_npu_does_not_take_is_refused_before_calibration(body, message):
    weights = {"v": CONV["v"], "axes": np.array([1, 2]), "which": np.array([1, 0, 1], bool), "u": r(4, 4, 2, 2)}
    used = {name: value for name, value in weights.items() if f" {name})" in body}
    proto = model(body, **used)
    with pytest.raises(UnsupportedModelError, match=message):
        insert(proto, [], Config(target="qnn"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_bits": 4}, "activation_bits is 4, and QNN runs activations of 8 or 16 bits"),
        ({"activation_granularity": "per_channel"}, "takes one scale per tensor"),
        ({"weight_symmetric": False}, "takes weights with zero point 0"),
        (
            {"weight_block_size": 32, "weight_bits": 4},
            "weight_block_size is set, and QNN would leave such weights to the CPU",
        ),
    ],
)
def test_settings_that_the_npu_does_not_take_are_refused_before_calibration(settings, message):
    with pytest.raises(InputError, match=message):
        insert(model(f"{IMAGE} {{ y = Conv(x, v) }}", v=CONV["v"]), [], Config(target="qnn", **settings))
