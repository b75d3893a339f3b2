import numpy as np
import pytest

from onnxqat.graph import io, qdq
from onnxqat.graph.without import without_quantizers
from tests.models import model, operators, outputs, random

WEIGHT = random(3, 2)
NODES = {
    "pair": "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w)",
    "pair on the output": "m = MatMul(x, w) q = QuantizeLinear(m, s, z) y = DequantizeLinear(q, s, z)",
    "pair on an input that is read on": """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) n = Neg(x) p = Add(d, n)
        k = Add(p, x) y = MatMul(k, w)""",
    "pair behind a pair": """q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) q2 = QuantizeLinear(d, t, z)
        c = Clip(q2, lo, hi) d2 = DequantizeLinear(c, t, z) n = Neg(d) k = Add(n, d2) j = Add(k, x) y = MatMul(j, w)""",
    "pair on a weight": "q = QuantizeLinear(w, s, z) d = DequantizeLinear(q, s, z) y = MatMul(x, d)",
}
VALUES = {
    "w": WEIGHT,
    "s": np.float32(0.5),
    "t": np.float32(1),
    "z": np.uint8(128),
    "lo": np.uint8(100),
    "hi": np.uint8(110),
}


def quantized(nodes):
    used = {name: array for name, array in VALUES.items() if f"{name})" in nodes or f"{name}," in nodes}
    return model(f"(float[N,3] x) => (float[N,2] y) {{ {nodes} }}", **used)


@pytest.mark.parametrize("nodes", NODES.values(), ids=NODES)
def test_float_model_computes_as_if_there_had_been_no_quantizer(nodes):
    floats = io.to_proto(without_quantizers(io.load(quantized(nodes))))
    assert not {"QuantizeLinear", "DequantizeLinear", "Clip"} & set(operators(floats))
    assert [value.name for value in floats.graph.output] == ["y"]
    x = random(4, 3, scale=1)
    np.testing.assert_allclose(outputs(floats, {"x": x})[0], x @ WEIGHT, rtol=1e-5, atol=1e-6)


def test_stored_codes_become_floats_again():
    codes = np.array([[0, 255], [128, 130], [3, 4]], np.uint8)
    nodes = "d = DequantizeLinear(c, s, z) y = MatMul(x, d)"
    proto = model(f"(float[N,3] x) => (float[N,2] y) {{ {nodes} }}", c=codes, s=VALUES["s"], z=VALUES["z"])
    floats = io.to_proto(without_quantizers(io.load(proto)))
    x = random(4, 3)
    np.testing.assert_allclose(
        outputs(floats, {"x": x})[0], x @ ((codes - np.float32(128)) * np.float32(0.5)), rtol=1e-5
    )


def test_argument_stays_as_it_was():
    given = io.load(quantized(NODES["pair on the output"]))
    before = io.to_proto(given).SerializeToString()
    without_quantizers(given)
    assert io.to_proto(given).SerializeToString() == before
    assert len(qdq.quantizers(given)) == 1
