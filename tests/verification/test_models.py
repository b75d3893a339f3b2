"""Copies of models with more outputs, their sizes."""

import numpy as np
import onnx
import onnxruntime as ort

from onnxqat.graph import io
from onnxqat.verification import models

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
