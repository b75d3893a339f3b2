import numpy as np
import pytest

import onnxqat
from onnxqat.graph import io, qdq
from onnxqat.graph.without import without_quantizers
from tests.models import model, operators, outputs, quantized_by_onnxruntime, random

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
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(floats))
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


def exact(*shape):
    """Weights that int8 holds exactly."""
    codes = np.random.default_rng(0).integers(-60, 61, shape)
    codes[0] = 127
    return codes.astype(np.float32) / 128


BOUNDS = {
    "relu": "r = Relu(h)",
    "from 0 to 1": "r = Clip(h, zero, one)",
    "from -1 to 1": "r = Clip(h, minus, one)",
    "up to 1": "r = Clip(h, , one)",
    "from 1": "r = Clip(h, one)",
    "relu behind a bound": "k = Clip(h, , one) r = Relu(k)",
}
NUMBERS = {"zero": np.float32(0), "one": np.float32(1), "minus": np.float32(-1)}


def bounded(nodes):
    used = {name: array for name, array in NUMBERS.items() if f", {name}" in nodes}
    weights = {"w": exact(8, 6), "b": random(6), "v": exact(6, 3), "c": random(3)}
    return model(
        f"(float[N,8] x) => (float[N,3] y) {{ h = Gemm(x, w, b) {nodes} y = Gemm(r, v, c) }}", **used, **weights
    )


@pytest.mark.parametrize("nodes", BOUNDS.values(), ids=BOUNDS)
def test_activation_that_fold_carried_out_on_codes_comes_back(nodes):
    proto = bounded(nodes)
    given = [{"x": random(64, 8, seed=seed, scale=1)} for seed in range(3)]
    deployed = onnxqat.fold(onnxqat.insert(proto, given, onnxqat.Config(overflow_fix="disable")))
    floats = io.to_proto(without_quantizers(io.load(deployed)))
    np.testing.assert_allclose(outputs(floats, given[0])[0], outputs(proto, given[0])[0], atol=1e-3)


@pytest.mark.parametrize("stage", [lambda qdq: qdq, onnxqat.fold], ids=["inserted", "folded"])
def test_a_grid_that_begins_at_0_by_calibration_cuts_nothing_off_the_float_model(stage):
    proto = model("(float[N,8] x) => (float[N,6] y) { a = HardSwish(x) y = MatMul(a, w) }", w=random(8, 6))
    given = {"x": np.abs(random(64, 8, scale=1))}
    floats = io.to_proto(without_quantizers(io.load(stage(onnxqat.insert(proto, [given])))))
    x = {"x": -given["x"]}
    np.testing.assert_allclose(outputs(floats, x)[0], outputs(proto, x)[0], atol=1e-2)


@pytest.mark.parametrize("nodes", [BOUNDS[name] for name in ("relu", "from 0 to 1", "from -1 to 1")])
def test_activation_that_another_tool_left_to_the_quantizer_comes_back(nodes, tmp_path):
    proto = bounded(nodes)
    given = [{"x": random(64, 8, seed=seed, scale=1)} for seed in range(3)]
    foreign = quantized_by_onnxruntime(proto, tmp_path, given, per_channel=True)
    assert not {"Relu", "Clip"} & set(operators(foreign))
    floats = io.to_proto(without_quantizers(io.load(foreign)))
    # half a step of the range's rounded ends
    np.testing.assert_allclose(outputs(floats, given[0])[0], outputs(proto, given[0])[0], atol=0.02)
    trainer = onnxqat.Trainer(foreign, loss="distill", optimizer=onnxqat.AdamW(lr=1e-3))
    assert all(trainer.step(batch) < 1e-3 for batch in given)
