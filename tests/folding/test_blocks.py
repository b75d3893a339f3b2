"""Weights in blocks, all the way: inserted, trained, folded, run by today's runtimes with 4-bit weights in memory."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxqat.config import Config, Override
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.graph.qdq import quantizers
from onnxqat.insertion import insert
from onnxqat.numerics import fake_quantize
from onnxqat.runtime import Inference
from onnxqat.training.trainer import Trainer
from onnxqat.verification.host import opened
from onnxqat.verification.run import kernels_of
from tests import stock
from tests.models import array, batches, model, operators, random
from tests.verification.conftest import openvino, stock_python  # noqa: F401  (fixtures)

BLOCKS = {"weight_bits": 4, "weight_block_size": 32, "quantize_activations": False}
B, C = random(24), random(10, seed=2)
NETS = {
    "MatMul": model(
        """(float[N,3,64] x) => (float[N,3,10] y) { [first] a = MatMul(x, w) c = Add(a, b) r = Relu(c)
        [last] d = MatMul(r, v) y = Add(d, e) }""",
        w=random(64, 24), v=random(24, 10), b=B, e=C,
    ),
    "MatMul of rows": model(
        "(float[N,64] x) => (float[N,10] y) { [first] a = MatMul(x, w) c = Add(a, b) r = Tanh(c) [last] y = MatMul(r, v) }",
        w=random(64, 24), v=random(24, 10), b=B,
    ),
    "Gemm": model(
        "(float[N,70] x) => (float[N,10] y) { [first] a = Gemm(x, w, b) r = Relu(a) [last] y = Gemm<transB=1>(r, v, e) }",
        w=random(70, 24), v=random(10, 24), b=B, e=C,
    ),
    "one weight twice": model(
        "(float[N,2,32] x) => (float[N,2,32] y) { [first] a = MatMul(x, w) r = Relu(a) [last] y = MatMul(r, w) }",
        w=random(32, 32),
    ),
}  # fmt: skip


def inserted(proto: onnx.ModelProto, **settings) -> onnx.ModelProto:
    return insert(proto, batches(proto), Config(**(BLOCKS | settings)))


@stock.needs_stock
@pytest.mark.parametrize("symmetric", [True, False], ids=["int4", "uint4"])
@pytest.mark.parametrize("name", NETS)
def test_layers_in_blocks_run_in_matmulnbits_of_today(name, symmetric):
    proto = NETS[name]
    quantized = inserted(proto, weight_symmetric=symmetric)
    deployed, (batch, *_) = fold(quantized), batches(proto)
    (found,), executed = stock.run(deployed, batch)
    assert executed["MatMulNBits"] == 2
    assert not set(executed) & {"DequantizeLinear", "Gemm", "MatMul", "FusedGemm"}
    expected = Inference(quantized)(batch)["y"]
    np.testing.assert_allclose(Inference(deployed)(batch)["y"], expected, rtol=1e-5, atol=1e-5)
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()  # data is rounded to 8 bits


@stock.needs_stock
def test_report_counts_the_kernels_and_says_that_they_round_their_input(stock_python):  # noqa: F811
    deployed = fold(inserted(NETS["Gemm"]))
    with opened("ort", stock_python) as host:
        found = kernels_of(host, io.load(deployed))
    assert [(kernel.kernel, kernel.kind) for kernel in found if kernel.is_weighted] == [
        ("MatMulNBits", "weight-only")
    ] * 2
    assert all("accuracy_level 4" in kernel.reason for kernel in found if kernel.is_weighted)


@pytest.mark.parametrize("symmetric", [True, False], ids=["i4", "u4"])
def test_openvino_runs_them_with_weights_of_4_bits(openvino, symmetric):  # noqa: F811
    proto = NETS["MatMul"]
    quantized = inserted(
        proto, target="openvino", weight_symmetric=symmetric, overrides=[Override(name="last", weight_block_size=0)]
    )
    layers = {kernel.node: kernel for kernel in kernels_of(openvino, io.load(fold(quantized)))}
    assert layers["first"].kernel == f"FullyConnected {'i4' if symmetric else 'u4'}"
    assert layers["first"].kind == "weight-only"


@stock.needs_stock
@pytest.mark.parametrize("name", ["first", "last"])
def test_layers_in_blocks_stand_beside_layers_on_integers(name):
    proto = NETS["Gemm"]
    rule = Override(name=name, weight_bits=4, weight_block_size=16, quantize_activations=False)
    quantized = insert(proto, batches(proto), Config(overrides=[rule]))
    (batch, *_) = batches(proto)
    (found,), executed = stock.run(fold(quantized), batch)
    assert executed["MatMulNBits"] == executed["QGemm"] == 1
    expected = Inference(quantized)(batch)["y"]
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()


@pytest.mark.parametrize("symmetric", [True, False], ids=["int4", "uint4"])
def test_scales_of_blocks_are_trained_and_folded_as_they_are(symmetric):
    proto = NETS["Gemm"]
    quantized = inserted(proto, weight_symmetric=symmetric)
    trainer = Trainer(quantized, "mse")
    losses = [trainer.step({**batch, "label": np.ones((4, 10), np.float32)}) for batch in batches(proto) * 3]
    trained = trainer.model()
    assert losses[-3] < losses[0]
    assert (array(trained, "w_scale") != array(quantized, "w_scale")).mean() > 0.9
    deployed = fold(trained)
    codes = next(tensor for tensor in deployed.graph.initializer if tensor.name == "w_quantized")
    assert codes.data_type == (onnx.TensorProto.INT4 if symmetric else onnx.TensorProto.UINT4)
    for one in quantizers(io.load(trained)):
        given = np.asarray(one.source.const_value)
        expected = fake_quantize(given, one.scales, one.zero_points, one.qmin, one.qmax, one.axis, one.block)
        kept = next(each for each in quantizers(io.load(deployed)) if each.output.name == one.output.name)
        np.testing.assert_array_equal(kept.dequantized, expected)


def test_deployed_model_in_blocks_can_be_trained_further():
    proto = NETS["Gemm"]
    deployed = fold(inserted(proto))
    again = fold(Trainer(deployed, "mse").model())
    for name in ("w_quantized", "w_scale"):
        np.testing.assert_array_equal(*(numpy_helper.to_array(_tensor(one, name)) for one in (deployed, again)))


def _tensor(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def test_the_least_error_is_sought_block_by_block():
    weight = random(64, 3)
    weight[:32] *= 100
    proto = model("(float[N,64] x) => (float[N,3] y) { y = MatMul(x, w) }", w=weight)
    scales = array(inserted(proto), "w_scale")
    assert scales.shape == (2, 3)
    assert (scales[0] > 30 * scales[1]).all()


def test_outputs_of_layers_in_blocks_are_corrected():
    proto = NETS["Gemm"]
    data = batches(proto, rows=128)
    plain, corrected = (
        insert(proto, data, Config(**BLOCKS, output_correction=correction)) for correction in ("none", "affine")
    )
    codes = [[one.codes for one in quantizers(io.load(model))] for model in (plain, corrected)]
    for before, after in zip(*codes, strict=True):
        np.testing.assert_array_equal(after, before)
    expected, *found = (np.concatenate([Inference(m)(batch)["y"] for batch in data]) for m in (proto, plain, corrected))
    lost, left = (np.abs(one.std(axis=0) / expected.std(axis=0) - 1).max() for one in found)
    assert left < lost / 2


REFUSED = {
    "8 bits": ({"weight_bits": 8}, "whose weights have 8 bits; blocks take 4: set weight_bits=4"),
    "8 bits in a rule": ({"overrides": [Override(name="last", weight_bits=8)]}, "for Gemm 'last', whose weights have 8 bits"),
    "quantized activations": ({"quantize_activations": True}, "activations are quantized too; .*quantize_activations=False"),
    "a rest on OpenVINO": ({"target": "openvino"}, "does not divide its 70 inputs, as OpenVINO demands; choose a size that does"),
    "another size": ({"weight_block_size": 48}, "weight_block_size: it must be 0, 16, 32, 64 or 128"),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_blocks_that_do_not_run_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        inserted(NETS["Gemm"], **settings)


def test_layers_without_a_kernel_for_blocks_keep_their_channels(caplog):
    proto = model(
        "(float[N,4,6,6] x) => (float[N,8] y) { [conv] c = Conv(x, k) f = Flatten(c) [dense] y = Gemm(f, w) }",
        k=random(4, 4, 3, 3), w=random(64, 8),
    )  # fmt: skip
    quantized = inserted(proto)
    found = {one.source.name: one for one in quantizers(io.load(quantized))}
    assert (found["w"].block, found["k"].block, found["k"].bits) == (32, 0, 8)
    assert "Conv 'conv'" in caplog.text


def test_older_operators_are_brought_to_the_opset_of_blocks():
    proto = model(
        """(float[N,4,64] x) => (float[N,10] y) { m = ReduceMean<axes=[1], keepdims=0>(x) p, q = Split<axis=1>(m)
        c = Concat<axis=1>(p, q) y = Gemm(c, w) }""",
        opset=13, w=random(64, 10),
    )  # fmt: skip
    quantized = inserted(proto, weight_block_size=64)
    assert (quantized.opset_import[0].version, quantized.ir_version) == (21, 10)
    (batch, *_) = batches(proto)
    expected, found = (Inference(one)(batch)["y"] for one in (proto, quantized))
    assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()
    assert operators(quantized)["Split"] == 1


def test_scales_that_do_not_fit_their_blocks_are_refused():
    quantized = inserted(NETS["Gemm"])
    for name in ("w_scale", "w_zero_point"):
        tensor = _tensor(quantized, name)
        tensor.CopyFrom(onnx.helper.make_tensor(name, tensor.data_type, [2, 24], [1] * 48))
    with pytest.raises(UnsupportedModelError, match=r"blocks of 32 along axis 0 of \[70, 24\] need \[3, 24\]"):
        fold(quantized)
