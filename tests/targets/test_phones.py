"""The targets `xnnpack` and `webgpu`, by structure and in onnxruntime's CPU kernels; and onnxruntime-web, under node."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.config import Config
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.insertion import insert
from tests import stock
from tests.models import array, batches, chain, model, operators, outputs
from tests.models import random as r

NODE, NODE_MODULES = shutil.which("node"), Path(os.environ.get("ONNXQAT_NODE_MODULES", "node_modules")).absolute()
WEIGHTS = {"w": r(8, 8, 3, 3), "b": r(8), "u": r(8, 8, 2, 2, seed=1), "e": r(8, seed=1), "g": r(2048, 32), "h": r(32)}
TEXT = """(float[N,8,4,4] x) => (float[N,32] y) { c = Conv<pads=[1,1,1,1]>(x, w, b) a = Relu(c) s = Add(a, x)
    t = ConvTranspose<strides=[4,4], output_padding=[2,2]>(s, u, e) d = Relu(t) f = Flatten(d) y = Gemm(f, g, h) }"""
TO_NODE = """
import * as ort from "onnxruntime-web";
import { readFileSync } from "node:fs";
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(readFileSync("model.onnx"));
const data = new Float32Array(new Uint8Array(readFileSync("x.bin")).buffer);
const found = await session.run({ x: new ort.Tensor("float32", data, [data.length / 128, 8, 4, 4]) });
console.log(JSON.stringify(Array.from(found.y.data)));
"""


def network() -> onnx.ModelProto:
    return model(TEXT, **WEIGHTS)


def inserted(target: str, **settings: object) -> onnx.ModelProto:
    return insert(network(), batches(network(), 2), Config(target=target, **settings))


def types(proto: onnx.ModelProto, end: str) -> set[int]:
    return {i.data_type for i in proto.graph.initializer if i.name.endswith(end)}


def test_xnnpack_gets_signed_integers_for_convolutions_and_float_products():
    folded = fold(inserted("xnnpack"))
    assert chain(folded) == [
        "Q",
        "DQ",
        "Conv",
        "Q",
        "DQ",
        "Add",
        "Q",
        "DQ",
        "ConvTranspose",
        "Q",
        "DQ",
        "Reshape",
        "Gemm",
    ]
    zero_points = {n.input[2] for n in folded.graph.node if n.op_type == "QuantizeLinear"}
    assert {array(folded, name).dtype.name for name in zero_points} == {"int8"}
    weights = {n.input[1]: n for n in folded.graph.node if n.op_type == "DequantizeLinear"}
    assert array(folded, "w_scale").shape == (8,)
    assert array(folded, "u_scale").shape == ()
    assert "g_scale" not in weights
    biases = [i for i in folded.graph.initializer if i.data_type == onnx.TensorProto.INT32]
    assert sorted(list(i.dims) for i in biases) == [[8], [8]]


@stock.needs_stock
def test_xnnpack_model_gives_the_answers_of_training_in_the_kernels_of_the_cpu():
    qdq = inserted("xnnpack")
    batch = batches(qdq, 1)[0]
    found, _ = stock.executed(fold(qdq), batch)
    expected = outputs(qdq, batch)[0]
    np.testing.assert_allclose(found[0], expected, atol=0.02 * np.abs(expected).max())


def test_webgpu_gets_integer_weights_and_no_quantizelinear():
    folded = fold(inserted("webgpu"))
    assert operators(folded)["QuantizeLinear"] == 0
    assert types(folded, "_quantized") == {onnx.TensorProto.INT8}
    batch = batches(folded, 1)[0]
    np.testing.assert_array_equal(outputs(folded, batch), outputs(inserted("webgpu"), batch))


def test_webgpu_gets_blocks_of_4_bits_that_become_the_kernel_for_them():
    folded = fold(inserted("webgpu", weight_bits=4, weight_block_size=32))
    assert onnx.TensorProto.INT4 in types(folded, "_quantized")
    assert operators(folded)["QuantizeLinear"] == 0


def test_webgpu_refuses_a_rule_that_quantizes_activations():
    rule = onnxqat.Override(type="Conv", quantize_activations=True)
    with pytest.raises(InputError, match="quantize_activations is set in a rule, and WebGPU has no kernel"):
        insert(network(), [], Config(target="webgpu", overrides=[rule]))


@pytest.mark.skipif(
    NODE is None or not (NODE_MODULES / "onnxruntime-web").is_dir(),
    reason="node or onnxruntime-web is not there; `make test` installs the latter where npm can",
)
@pytest.mark.parametrize("target", ["ort-cpu", "webgpu"])
def test_deployed_model_gives_the_same_answers_in_onnxruntime_web(target, tmp_path):
    qdq = inserted(target)
    batch = batches(qdq, 1)[0]
    (tmp_path / "node_modules").symlink_to(NODE_MODULES)
    (tmp_path / "run.mjs").write_text(TO_NODE)
    onnx.save(fold(qdq), tmp_path / "model.onnx")
    batch["x"].tofile(tmp_path / "x.bin")
    done = subprocess.run([NODE, "run.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    expected = outputs(qdq, batch)[0]
    found = np.array(json.loads(done.stdout), np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
