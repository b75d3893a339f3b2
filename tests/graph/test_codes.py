"""Quantized models as converters and runtimes write them: codes that move, stored codes that move, codes as inputs."""

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.cli.inspection import quantization_table
from onnxqat.errors import OnnxqatError
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from tests.models import chain, model, outputs, random


def codes(*shape):
    return np.clip(np.rint(random(*shape) * 100), -127, 127).astype(np.int8)


GRID = {"sx": np.float32(0.02), "zx": np.uint8(120), "sw": np.float32(0.01), "zw": np.int8(0)}
LAST = "w = DequantizeLinear(wq, sw, zw) y = Conv(f, w, b)"
CONV = {"wq": codes(4, 4, 1, 1), "b": random(4)}
IMAGES = [{"x": random(2, 4, 8, 8, seed=seed, scale=1)} for seed in range(3)]
ROWS = [{"x": random(16, 8, seed=seed, scale=1)} for seed in range(3)]
BYTES = [{"x": np.random.default_rng(seed).integers(0, 256, (16, 8)).astype(np.uint8)} for seed in range(3)]


def moving(nodes, more=None):
    body = f"xc = QuantizeLinear(x, sx, zx) {nodes} f = DequantizeLinear(m, sx, zx) {LAST}"
    return model(f"(float[N,4,8,8] x) => (float[N,4,A,B] y) {{ {body} }}", **GRID, **CONV, **(more or {})), IMAGES


PAIR = "xc = QuantizeLinear(x, sx, zx) f = DequantizeLinear(xc, sx, zx)"
MODELS = {
    "pooled": moving("m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(xc)"),
    "pooled with padding": moving("m = MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(xc)"),
    "moved twice": moving("t = Transpose<perm=[0,1,3,2]>(xc) m = MaxPool<kernel_shape=[2,2]>(t)"),
    "padded by the code of 0": moving("m = Pad(xc, p, zx)", {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "padded by code 0": moving("m = Pad(xc, p)", {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
    "joined": moving("t = Transpose<perm=[0,1,3,2]>(xc) m = Concat<axis=3>(xc, t)"),
    "weight moved": (
        model(
            f"(float[N,8] x) => (float[N,6] y) {{ {PAIR} t = Transpose(wq) w = DequantizeLinear(t, sw, zw) y = MatMul(f, w) }}",
            **GRID,
            wq=codes(6, 8),
        ),
        ROWS,
    ),
    "bytes": (
        model(
            """(uint8[N,8] x) => (float[N,6] y) { f = DequantizeLinear(x, sx, zx) w = DequantizeLinear(wq, sw, zw)
            y = Gemm(f, w, b) }""",
            **GRID,
            wq=codes(8, 6),
            b=random(6),
        ),
        BYTES,
    ),
    "bytes that move": (
        model(
            """(uint8[8,N] x) => (float[N,6] y) { t = Transpose(x) f = DequantizeLinear(t, sx, zx)
            w = DequantizeLinear(wq, sw, zw) y = Gemm(f, w, b) }""",
            **GRID,
            wq=codes(8, 6),
            b=random(6),
        ),
        [{"x": np.ascontiguousarray(batch["x"].T)} for batch in BYTES],
    ),
}


@pytest.mark.parametrize(("proto", "data"), MODELS.values(), ids=MODELS)
def test_model_of_another_tool_is_read_trained_and_folded(proto, data):
    loaded = io.load(proto)
    np.testing.assert_array_equal(outputs(io.to_proto(loaded), data[0])[0], outputs(proto, data[0])[0])
    assert all(quantizer.dequantize.name for quantizer in quantizers(loaded))
    assert quantization_table(loaded)
    trainer = onnxqat.Trainer(proto, loss="distill", optimizer=onnxqat.AdamW(lr=1e-6))
    trainer.step(data[0])
    deployed = onnxqat.fold(trainer.model())
    onnx.checker.check_model(deployed)
    want, got = outputs(proto, data[1])[0], outputs(deployed, data[1])[0]
    assert np.abs(want - got).max() < 0.02 * np.abs(want).max()


def test_table_of_codes_is_read_with_its_own_scale():
    proto = model(
        """(int64[N,3] x) => (float[N,3,6] y) { c = Gather(table, x) e = DequantizeLinear(c, sw, zw)
        xc = QuantizeLinear(e, sx, zx) f = DequantizeLinear(xc, sx, zx) w = DequantizeLinear(wq, sw, zw) y = MatMul(f, w) }""",
        **{**GRID, "sx": np.float32(0.013)},
        wq=codes(8, 6),
        table=codes(40, 8),
    )
    batch = {"x": np.random.default_rng(0).integers(0, 40, (4, 3))}
    trainer = onnxqat.Trainer(proto, loss="distill", optimizer=onnxqat.AdamW(lr=1e-6))
    trainer.step(batch)
    want, got = outputs(proto, batch)[0], outputs(onnxqat.fold(trainer.model()), batch)[0]
    assert np.abs(want - got).max() < 0.02 * np.abs(want).max()


ENDS = {
    "codes": (
        """(float[N,8] x) => (uint8[N,6] y) { xc = QuantizeLinear(x, sx, zx) f = DequantizeLinear(xc, sx, zx)
        w = DequantizeLinear(wq, sw, zw) g = MatMul(f, w) y = QuantizeLinear(g, sx, zx) }""",
        "remove QuantizeLinear 'y' from its end",
        ("sx", "zx", "sw", "zw"),
    ),
    "scales at run time": (
        """(float[N,8] x) => (float[N,6] y) { xc, s, z = DynamicQuantizeLinear(x) f = DequantizeLinear(xc, s, z)
        w = DequantizeLinear(wq, sw, zw) y = MatMul(f, w) }""",
        "DequantizeLinear 'f': scale 's' is computed at run time; start from the float model",
        ("sw", "zw"),
    ),
}


@pytest.mark.parametrize(("body", "message", "names"), ENDS.values(), ids=ENDS)
def test_what_cannot_be_trained_says_what_to_do(body, message, names):
    proto = model(body, **{name: GRID[name] for name in names}, wq=codes(8, 6))
    with pytest.raises(OnnxqatError, match=message):
        onnxqat.Trainer(proto, loss="distill")


def test_movement_between_pairs_stays_on_integers():
    deployed = onnxqat.fold(MODELS["pooled"][0])
    assert chain(deployed)[:5] == ["Q", "DQ", "MaxPool", "Q", "DQ"]
