"""The exported step raises the scales that weights and biases have outgrown, as `Trainer` does after each of its own."""

import numpy as np
import onnx_ir as ir
import pytest

import onnxqat
from onnxqat.runtime import run_exactly
from onnxqat.training.portable.flat import GRADIENTS, PARAMETERS
from onnxqat.training.portable.optimizer import optimizer_graph
from onnxqat.training.quantizers.pair_safety import PairSafety
from onnxqat.training.training_graph.build import forward_graph, load_qdq
from onnxqat.training.training_graph.parameters import initial_values
from tests.models import model, random

#: A layer of each kind, by what its kernel adds: pairs across taps, no pairs, pairs in groups, of channels, of rows.
LAYERS = """(float[N,3,6,6] x) => (float[N,4] y) {
    a = Conv <pads=[1,1,1,1]> (x, w, b) c = Conv <group=4> (a, d) e = Conv <group=2> (c, f)
    g = ConvTranspose <group=3> (e, h) i = MatMul (g, j) k = Flatten (i) y = Gemm <transB=1> (k, l, m) }"""
WEIGHTS = {
    "w": random(4, 3, 3, 3), "b": random(4), "d": random(4, 1, 2, 2), "f": random(6, 2, 3, 3),
    "h": random(6, 2, 2, 2), "j": random(4, 5), "l": random(4, 6 * 4 * 5), "m": random(4),
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "raised"),
    [
        pytest.param({}, "wdfjl", id="per channel"),
        pytest.param({"target": "openvino", "weight_granularity": "per_tensor"}, "wdfhjl", id="openvino, per tensor"),
        pytest.param({"weight_symmetric": False}, "wfjl", id="asymmetric, where a Clip keeps lone codes from -128"),
    ],
)
def test_scales_are_raised_to_where_no_pair_saturates_and_biases_fit(settings, raised):
    qdq = load_qdq(onnxqat.insert(model(LAYERS, **WEIGHTS), [random(2, 3, 6, 6)], onnxqat.Config(**settings)))
    _, layout = forward_graph(qdq)
    start = initial_values(qdq.graph, layout)
    grown = layout.named(start)
    for name, factor in {**dict.fromkeys(WEIGHTS, 3), "m": 1e9}.items():
        grown[name] *= factor
    step = ir.to_proto(optimizer_graph(onnxqat.SGD(lr=0.1), qdq, layout, start))
    feeds = {PARAMETERS: start, **dict.fromkeys((GRADIENTS, "moment_0"), np.zeros_like(start))}
    found = run_exactly(step, {**feeds, "learning_rate": np.float32(0.1), "step": np.float32(1)})["new_parameters"]
    expected = layout.named(start.copy())
    PairSafety(qdq).hold(expected)
    for name, array in layout.named(found).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, err_msg=name)
    assert {name for name in expected if (expected[name] != grown[name]).any()} == {f"{name}_scale" for name in raised}
