"""`onnxqat.gradients`: any model, float or Q/DQ, and its refusals."""

import numpy as np
import onnx
import pytest
import torch

import onnxqat
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.training.trainer import Trainer
from tests.models import model, random
from tests.training.test_trainer import BODY, WEIGHTS

NET = model(BODY, **WEIGHTS)
X = {"x": random(4, 3, 8, 8, scale=1.0)}


def torch_net(x, w1, b1, w2, b2, w3, b3):
    b = torch.relu(torch.nn.functional.conv2d(x, w1, b1, padding=1))
    e = torch.relu(b + torch.nn.functional.conv2d(b, w2, b2, padding=1))
    return torch.nn.functional.linear(e.mean((2, 3)), w3, b3)


def weights(proto):
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    return {name: array for name, array in arrays.items() if array.dtype == np.float32}


@pytest.mark.parametrize("wrt", [["x"], ["w1"], ["b2", "w3"], ["x", *weights(NET)]], ids=" ".join)
def test_gradients_of_inputs_and_initializers_are_those_of_torch(wrt):
    tensors = {k: torch.tensor(v).requires_grad_(k in wrt) for k, v in (X | weights(NET)).items()}
    y = torch_net(**tensors)
    cotangent = random(4, 5, seed=3)
    y.backward(torch.tensor(cotangent))
    outputs, found = onnxqat.gradients(NET, X, wrt, {"y": cotangent})
    np.testing.assert_allclose(outputs["y"], y.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert list(found) == wrt
    for name in wrt:
        np.testing.assert_allclose(found[name], tensors[name].grad.numpy(), rtol=1e-4, atol=1e-5)


TWO = model(
    "(float[3] x, float[3] z) => (float[3] y, int64[1] i, float[3] v) { y = Sin (x) i = Shape (x) v = Exp (z) }"
)
POINT = {"x": random(3), "z": random(3, seed=1)}


def test_without_cotangents_every_float_output_counts_once():
    outputs, found = onnxqat.gradients(TWO, POINT, ["x", "z"])
    assert outputs["i"].tolist() == [3]
    np.testing.assert_allclose(found["x"], np.cos(POINT["x"]), rtol=1e-6)
    np.testing.assert_allclose(found["z"], np.exp(POINT["z"]), rtol=1e-6)


def test_an_output_without_a_cotangent_does_not_count_once_any_is_given():
    _, found = onnxqat.gradients(TWO, POINT, ["x", "z"], {"y": np.array([1, 0, 2], np.float32)})
    np.testing.assert_allclose(found["x"], [1, 0, 2] * np.cos(POINT["x"]), rtol=1e-6)
    assert not found["z"].any()


def test_an_input_used_twice_by_one_node_gets_both_shares():
    square = model("(float[3] x) => (float[3] y) { y = Mul (x, x) }")
    _, found = onnxqat.gradients(square, {"x": POINT["x"]}, ["x"])
    np.testing.assert_allclose(found["x"], 2 * POINT["x"], rtol=1e-6)


def test_an_output_that_is_an_input_passes_its_cotangent():
    same = model("(float[3] x) => (float[3] x, float[3] y) { y = Exp (x) }")
    _, found = onnxqat.gradients(same, {"x": POINT["x"]}, ["x"])
    np.testing.assert_allclose(found["x"], 1 + np.exp(POINT["x"]), rtol=1e-6)


@pytest.mark.parametrize(
    ("wrt", "message"),
    [(["nowhere"], "no input or initializer has this name"), (["k"], "only float values have gradients")],
    ids=["unknown", "integer"],
)
def test_what_has_no_gradient_cannot_be_asked_for(wrt, message):
    proto = model("(float[3] x) => (float[3] y) { y = Reshape (x, k) }", k=np.array([3]))
    with pytest.raises(InputError, match=message):
        onnxqat.gradients(proto, {"x": random(3)}, wrt)


@pytest.mark.parametrize(
    ("cotangents", "message"),
    [({"w": random(3)}, "not float outputs"), ({"i": np.ones(1)}, "not float outputs"), ({"y": random(2)}, "y")],
    ids=["unknown", "integer output", "shape"],
)
def test_cotangents_belong_to_float_outputs(cotangents, message):
    with pytest.raises(InputError, match=message):
        onnxqat.gradients(TWO, POINT, ["x"], cotangents)


def test_every_blocking_node_is_named():
    proto = model(
        """(float[2,2] x) => (float[n] y)
        {
            [first] a = Unique (x)
            b = Exp (x)
            [second] c = Unique (b)
            y = Add (a, c)
        }"""
    )
    with pytest.raises(UnsupportedModelError, match=r"2 node\(s\): Unique 'first', 'second'.*freeze"):
        onnxqat.gradients(proto, {"x": random(2, 2)}, ["x"])


def test_a_node_without_gradient_beside_the_way_does_not_matter():
    proto = model("(float[2,2] x, float[1] z) => (float[2,2] y) { a = Unique (z) y = Mul (x, a) }")
    _, found = onnxqat.gradients(proto, {"x": random(2, 2), "z": np.ones(1, np.float32)}, ["x"])
    np.testing.assert_array_equal(found["x"], np.ones((2, 2)))


def softmax_cross_entropy_cotangent(logits, label):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    return ((probabilities - np.eye(logits.shape[1])[label]) / len(label)).astype(np.float32)


@pytest.fixture(scope="module", params=[8, 4])
def qdq(request):
    config = onnxqat.Config(weight_bits=request.param, activation_bits=request.param)
    return onnxqat.insert(NET, calibration=[X], config=config)


@pytest.mark.parametrize("stored", ["as floats", "as integers"])
def test_gradients_of_a_quantized_model_are_those_of_training(qdq, stored):
    proto = qdq if stored == "as floats" else onnxqat.fold(qdq)
    label = np.arange(4) % 5
    _, expected = Trainer(proto).gradients({**X, "label": label})
    assert len(expected) >= 10
    assert {"w1", "x_scale"} <= set(expected)
    logits = onnxqat.gradients(proto, X, ["x"])[0]["y"]
    cotangents = {"y": softmax_cross_entropy_cotangent(logits, label)}
    _, found = onnxqat.gradients(proto, X, list(expected), cotangents)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, rtol=1e-3, atol=1e-5 * np.abs(gradient).max() + 1e-7)


@pytest.mark.parametrize("wrt", ["x", "x_scale", "w3", "b_scale"])
def test_one_gradient_alone_is_the_same_as_among_others(qdq, wrt):
    _, alone = onnxqat.gradients(qdq, X, [wrt])
    _, among = onnxqat.gradients(qdq, X, ["x", "x_scale", "w3", "b_scale", "w1"])
    np.testing.assert_allclose(alone[wrt], among[wrt], rtol=1e-5, atol=1e-6)


def test_an_input_that_only_steers_gets_no_gradient_where_it_depends_on_a_parameter() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[2] v, float[3] p) => (float[3,4] y, float[3] z) '
        "<float depth = {4}> { i = Abs (p) y = OneHot (i, depth, v) z = CastLike (p, y) }"
    )
    feeds = {"v": np.array([2, 3], np.float32), "p": np.array([0, -1, 2], np.float32)}
    _, found = onnxqat.gradients(proto, feeds, ["v", "p"])
    np.testing.assert_array_equal(found["v"], [9, 3])
    np.testing.assert_array_equal(found["p"], [1, 1, 1])


def test_control_flow_beside_the_way_does_not_crash_the_process() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[2] x, float[2] k, bool c) => (float[2] y) { a = Exp (k) b = Neg (a) '
        "f = If (c) <then_branch = t () => (float[2] r) { r = Identity (b) }, else_branch = e () => (float[2] q) "
        "{ q = Add (a, b) }> y = Mul (x, f) }"
    )
    feeds = {"x": np.ones(2, np.float32), "k": np.zeros(2, np.float32), "c": np.array(True)}
    np.testing.assert_array_equal(onnxqat.gradients(proto, feeds, ["x"])[1]["x"], [-1, -1])


def test_training_with_frozen_scales_gives_the_other_gradients_unchanged(qdq):
    batch = {**X, "label": np.arange(4) % 5}
    _, expected = Trainer(qdq).gradients(batch)
    _, found = Trainer(qdq, freeze=[".*scale"]).gradients(batch)
    assert set(found) == {name for name in expected if not name.endswith("scale")}
    for name, gradient in found.items():
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_a_sequence_beside_the_way_is_no_tensor() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[2] x, float[4] k) => (float[2] y) { n = Constant <value_int=2> () '
        "s = SplitToSequence (k, n) i = Constant <value_int=1> () f = SequenceAt (s, i) y = Mul (x, f) }"
    )
    feeds = {"x": np.ones(2, np.float32), "k": np.arange(4, dtype=np.float32)}
    np.testing.assert_array_equal(onnxqat.gradients(proto, feeds, ["x"])[1]["x"], [2, 3])
