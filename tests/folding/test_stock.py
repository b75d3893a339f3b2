"""Deployed models in today's onnxruntime, with its setting against saturation too."""

import numpy as np
import pytest

from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.insertion import insert
from tests import stock
from tests.insertion.cases import INTEGER
from tests.models import FLOAT_KERNELS, batches, model, outputs, random

W, V, B = random(8, 8), random(8, 8, seed=3), random(8)
SHARED = {
    "Conv": INTEGER["shared weight"],
    "Gemm": model("(float[N,8] x) => (float[N,8] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, w, b) }", w=W, b=B),
    "MatMul": model(
        "(float[N,3,8] x) => (float[N,3,8] y) { a = MatMul(x, w) r = Relu(a) s = MatMul(r, w) t = Relu(s) y = MatMul(t, w) }",
        w=W,
    ),
    "MatMul and Gemm": model(
        """(float[N,3,8] x) => (float[M,8] y) { a = MatMul(x, w) r = Relu(a) s = Reshape(r, flat) y = Gemm(s, w, b) }""",
        w=W, b=B, flat=np.array([-1, 8]),
    ),
    "nothing": model("(float[N,8] x) => (float[N,8] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v, b) }", w=W, v=V, b=B),
}  # fmt: skip


@stock.needs_stock
@pytest.mark.parametrize("precise", [False, True], ids=["default", "precise"])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("name", SHARED)
def test_layers_that_share_a_weight_run_on_integers(name, granularity, precise):
    proto = SHARED[name]
    (batch, *_) = data = batches(proto)
    quantized = insert(proto, data, Config(weight_granularity=granularity))
    (found,), kernels = stock.run(fold(quantized), batch, precise=precise)
    assert not set(kernels) & FLOAT_KERNELS
    (expected,) = outputs(quantized, batch)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


@stock.needs_stock
def test_weights_of_other_quantizers_that_share_codes_and_zero_points_load():
    codes = np.random.default_rng(0).integers(-127, 128, (8, 8)).astype(np.int8)
    foreign = model(
        """(float[N,8] x) => (float[N,8] y) {
        q = QuantizeLinear(x, s, half) d = DequantizeLinear(q, s, half) [first] a = DequantizeLinear(w, t, zero)
        m = MatMul(d, a) n = QuantizeLinear(m, s, half) e = DequantizeLinear(n, s, half)
        [second] b = DequantizeLinear(w, t, zero) [third] c = DequantizeLinear(v, t, zero)
        o = MatMul(e, b) p = QuantizeLinear(o, s, half) f = DequantizeLinear(p, s, half) y = MatMul(f, c) }""",
        w=codes, v=codes.T.copy(), s=np.float32(0.03), t=np.float32(0.004), zero=np.int8(0), half=np.uint8(128),
    )  # fmt: skip
    (batch, *_) = batches(foreign)
    (found,), _ = stock.run(fold(foreign), batch, precise=True)
    np.testing.assert_allclose(found, outputs(foreign, batch)[0], atol=1e-4)


@pytest.mark.parametrize(("fix", "copies"), [("disable", 2), ("enable", 1)])
def test_a_shared_weight_is_stored_again_only_where_its_codes_could_saturate(fix, copies):
    proto = SHARED["Gemm"]
    quantized = insert(proto, batches(proto), Config(overflow_fix=fix))
    folded = fold(quantized)
    assert sum(tuple(tensor.dims) == (8, 8) for tensor in folded.graph.initializer) == copies
