"""Copies of models: without quantizers, with more outputs, their sizes."""

import numpy as np
import onnx
import onnxruntime as ort

from onnxqat.graph import io
from onnxqat.verify import models

QUANTIZED = """
  c = Conv(xd, w1d, b1d)
  r = Relu(c)
  rq = QuantizeLinear(r, s, z0)
  rd = DequantizeLinear(rq, s, z0)
  d = Conv(rd, w2d, bf)
  dq = QuantizeLinear(d, s, z)
  y = DequantizeLinear(dq, s, z)
"""


def outputs_of(model, x):
    session = ort.InferenceSession(io.to_proto(model).SerializeToString())
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))


def test_float_model_has_the_quantized_models_weights_and_no_quantizer(network):
    floats = models.without_quantizers(io.load(network(QUANTIZED)))
    assert [node.op_type for node in floats.graph] == ["Conv", "Relu", "Conv", "Identity"]
    x = np.random.default_rng(0).normal(size=(2, 2, 4, 4)).astype(np.float32)
    w1, w2 = np.array([[1, -0.5], [0.3, 0.7]]), np.array([[-0.2, 0.9], [0.6, -1.1]])
    hidden = np.einsum("oi,nihw->nohw", w1, x) + np.array([0.005, -0.01])[:, None, None]
    expected = np.einsum("oi,nihw->nohw", w2, np.maximum(hidden, 0)) + np.array([0.1, -0.2])[:, None, None]
    # float32 sums against float64 ones
    np.testing.assert_allclose(outputs_of(floats, x)["y"], expected, rtol=1e-5, atol=1e-5)


def test_float_model_leaves_the_argument_as_it_was(network):
    model = io.load(network(QUANTIZED))
    before = io.to_proto(model).SerializeToString()
    models.without_quantizers(model)
    assert io.to_proto(model).SerializeToString() == before


def test_probes_are_the_quantized_values_in_order(network):
    assert list(models.probes(io.load(network(QUANTIZED)))) == ["xd", "rd", "y"]


def test_more_outputs_are_added_under_their_names(network):
    x = np.ones((1, 2, 4, 4), np.float32)
    plain = io.load(network(QUANTIZED))
    probed = models.with_outputs(plain, ["xd", "rd", "y"])
    outputs = outputs_of(probed, x)
    assert list(outputs) == ["y", "xd", "rd"]
    np.testing.assert_array_equal(outputs["y"], outputs_of(plain, x)["y"])
    np.testing.assert_array_equal(outputs["xd"], x)


def test_size_counts_external_data(network, tmp_path):
    proto = network(QUANTIZED)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(5000, np.float32), "big"))
    path = tmp_path / "m.onnx"
    onnx.save(proto, path, save_as_external_data=True, location="m.data", size_threshold=10_000)
    assert models.size(path) == path.stat().st_size + (tmp_path / "m.data").stat().st_size
    assert models.size(path) > 20_000
