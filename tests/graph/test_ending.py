"""The activation behind an output, and which axis of the output its classes are on."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxqat.graph.ending import channel_axis, ending, is_linear, varies_in_size
from onnxqat.graph.types import infer
from tests.models import model, random

PLACES = {"flat": np.array([0, -1]), "rows": np.array([-1, 4]), "grid": np.array([0, 4, 2, 3]), "one": np.array([1])}
PLACES |= {"lo": np.float32(0.2), "s": np.float32(0.1), "z": np.uint8(0), "q0": np.uint8(0), "q15": np.uint8(15)}


def output(body):
    graph = ir.from_proto(model(body, **PLACES, w=random(4, 4), k=random(4, 4, 1, 1)))
    infer(graph)
    return graph.graph.outputs[0]


AXES = {
    "last": ("(float[N,5,4] x) => (float[N,5,4] y) { y = Softmax(x) }", 2),
    "turned": ("(float[N,5,4] x) => (float[N,4,5] y) { p = Softmax(x) y = Transpose<perm=[0,2,1]>(p) }", 1),
    "more axes before": ("(float[N,4] x) => (float[N,1,4] y) { p = Softmax(x) y = Unsqueeze(p, one) }", 2),
    "fewer axes behind": ("(float[N,4,1,1] x) => (float[N,4] y) { p = Softmax<axis=1>(x) y = Flatten(p) }", 1),
    "places apart": ("(float[N,4,6] x) => (float[N,4,2,3] y) { p = Softmax<axis=1>(x) y = Reshape(p, grid) }", 1),
    "rows put together": ("(float[N,5,4] x) => (float[M,4] y) { p = Softmax(x) y = Reshape(p, rows) }", 1),
}


@pytest.mark.parametrize(("body", "axis"), AXES.values(), ids=AXES)
def test_the_class_axis_is_followed_to_the_output(body, axis):
    found = ending(output(body))
    assert (found.activation.op_type, found.axis, found.merged) == ("Softmax", axis, False)


def test_classes_put_together_with_others_are_on_no_axis():
    assert ending(output("(float[N,5,4] x) => (float[N,20] y) { p = Softmax(x) y = Flatten(p) }")).merged


def test_an_activation_is_found_behind_a_quantizer_of_few_bits():
    body = """(float[N,4] x) => (float[N,4] y)
    { p = Sigmoid(x) q = QuantizeLinear(p, s, z) c = Clip(q, q0, q15) y = DequantizeLinear(c, s, z) }"""
    assert ending(output(body)).activation.op_type == "Sigmoid"


@pytest.mark.parametrize("end", ["Clip(p, lo)", "Neg(p)", "Mul(p, p)"])
def test_what_changes_values_hides_the_activation(end):
    assert ending(output(f"(float[N,4] x) => (float[N,4] y) {{ p = Sigmoid(x) y = {end} }}")) is None


@pytest.mark.parametrize(
    ("end", "linear"),
    [("y = MatMul(x, w)", True), ("a = MatMul(x, w) y = Reshape(a, rows)", True), ("a = Exp(x) y = Div(x, a)", False)],
    ids=["a layer", "movement behind it", "a quotient"],
)
def test_outputs_of_linear_layers_are_logits(end, linear):
    assert is_linear(output(f"(float[N,4] x) => (float[N,4] y) {{ {end} }}")) == linear


@pytest.mark.parametrize(
    ("body", "axis"),
    [
        ("(float[N,5,4] x) => (float[N,5,4] y) { y = MatMul(x, w) }", 2),
        ("(float[N,4,2,3] x) => (float[N,4,2,3] y) { y = Conv(x, k) }", 1),
        ("(float[N,4,2,3] x) => (float[N,2,3,4] y) { c = Conv(x, k) y = Transpose<perm=[0,2,3,1]>(c) }", 3),
        ("(float[N,4,2,3] x) => (float[N,4,2,3] y) { c = Conv(x, k) y = Exp(c) }", None),
    ],
    ids=["tokens", "pixels", "pixels, channels last", "another function"],
)
def test_channels_of_the_last_layer_are_followed_to_the_output(body, axis):
    assert channel_axis(output(body)) == axis


def test_the_size_of_chosen_places_varies():
    chosen = output("(float[N,4] x) => (int64[2,K] y) { g = Greater(x, lo) y = NonZero(g) }")
    scattered = output(
        "(float[N,4] x) => (float[N,4] y) { i = NonZero(x) t = Transpose(i) u = GatherND(x, t) y = ScatterND(x, t, u) }"
    )
    assert varies_in_size(chosen, chosen.producer().graph.inputs)
    assert not varies_in_size(scattered, scattered.producer().graph.inputs)
