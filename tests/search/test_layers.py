"""Layers side by side, against NumPy and the runtime."""

import json

import numpy as np
import onnx_ir as ir
import pytest

import onnxqat
from onnxqat import Config
from onnxqat.graph.qdq import quantizers
from tests.models import model, outputs, random

NET = """(float[N,3,6,6] x) => (float[N,4] y) {
  a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
  n = BatchNormalization(a, s, t, m, v)
  r = Relu(n)
  c = Conv<pads = [1, 1, 1, 1]>(r, u)
  d = Add(c, n)
  p = GlobalAveragePool(d)
  f = Flatten(p)
  y = Gemm(f, g)
}"""
WEIGHTS = {
    "w": random(5, 3, 3, 3),
    "b": random(5),
    "s": 1 + random(5),
    "t": random(5),
    "m": random(5),
    "v": np.abs(random(5)) + 0.5,
    "u": random(5, 5, 3, 3),
    "g": random(5, 4),
}
DATA = [{"x": random(8, 3, 6, 6, seed=n, scale=1.0)} for n in range(2)]


@pytest.fixture(scope="module")
def network():
    return model(NET, **WEIGHTS)


@pytest.fixture(scope="module")
def qdq(network):
    return onnxqat.insert(network, DATA, Config(weight_bits=4, activation_bits=4, first_last_bits=None))


@pytest.fixture(scope="module")
def found(network, qdq):
    return onnxqat.layers(network, qdq, DATA, onnxqat.fold(qdq))


def decibels(expected, actual):
    return 10 * np.log10((expected**2).sum() / ((actual - expected) ** 2).sum())


def test_output_of_the_last_layer_has_the_snr_of_the_models_outputs(network, qdq, found):
    expected, actual = (np.concatenate([outputs(one, batch)[0] for batch in DATA]) for one in (network, qdq))
    last = found.layers[-1]
    assert (last.op_type, last.value, last.bits) == ("Gemm", "y", "W4A4")
    assert last.snr == pytest.approx(decibels(expected, actual), abs=0.05)
    assert last.snr_deployed == pytest.approx(last.snr, abs=1.0)  # integers differ by rounding


def test_a_normalization_that_was_folded_does_not_count_as_noise(found):
    assert found.layers[0].op_type == "Conv"
    assert all(layer.snr > 5 for layer in found.layers)


def test_weights_have_the_snr_and_the_clipped_share_of_their_grid(qdq, found):
    weights = {q.source.name: q for q in quantizers(ir.from_proto(qdq)) if q.is_weight}
    grid = found.layers[0].weight
    quantizer = weights[grid.value]
    array = quantizer.source.const_value.numpy()
    assert grid.snr == pytest.approx(decibels(array, quantizer.dequantized), abs=0.01)
    assert sum(grid.counts) == array.size
    assert grid.codes == (quantizer.qmin, quantizer.qmax)


def test_clipped_share_of_an_activation_is_counted_on_all_samples(found):
    network = model(NET, **WEIGHTS)
    narrow = onnxqat.insert(network, DATA, Config(activation_range={"type": "percentile", "max_percentile": 90.0}))
    layer = onnxqat.layers(network, narrow, DATA).layers[0]
    assert 0.02 < layer.output.clipped < 0.2
    assert sum(layer.output.counts) == 16 * 5 * 36


def test_kernels_times_and_readers_are_those_of_the_runtime(found):
    by_type = {layer.op_type: layer for layer in found.layers}
    assert by_type["Add"].kernel == "QLinearAdd"
    assert by_type["Add"].reads == tuple(layer.node for layer in found.layers if layer.op_type == "Conv")
    assert all(layer.milliseconds > 0 for layer in found.layers if layer.op_type == "Conv")


def test_scales_drift_through_training_and_only_known_with_the_initial_model(network, qdq, found):
    trained = ir.from_proto(qdq)
    for quantizer in quantizers(trained):
        array = quantizer.scales * np.float32(1.5)
        quantizer.scale.const_value = ir.tensor(array, name=quantizer.scale.name)
    moved = onnxqat.layers(network, trained, DATA, initial=qdq)
    assert moved.layers[0].weight.drift == pytest.approx(0.5, abs=1e-5)
    assert found.layers[0].weight.drift is None


def test_findings_are_plain_json(found):
    assert json.loads(found.to_json())["samples"] == 16


def test_time_of_borders_is_told_by_operator(found):
    assert {"QuantizeLinear", "DequantizeLinear"} <= set(found.others)
    assert all(time >= 0 for time in found.others.values())


def test_a_recurrent_layer_is_judged_by_the_output_that_is_read():
    body = """(float[T,N,8] x) => (float[N,3] y) { s, last = LSTM <hidden_size = 4> (x, w, r)
        h = Squeeze(last, axes)  y = MatMul(h, v) }"""
    network = model(body, w=random(1, 16, 8), r=random(1, 16, 4), v=random(4, 3), axes=np.array([0]))
    data = [{"x": random(3, 2, 8)}]
    qdq = onnxqat.insert(network, data)
    found = onnxqat.layers(network, qdq, data, onnxqat.fold(qdq))
    layer = next(one for one in found.layers if one.op_type == "LSTM")
    assert layer.value != ""
    assert layer.snr > 20
