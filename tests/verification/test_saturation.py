"""Statements of verify about processors without VNNI: a proof if no pair can saturate, else what they compute."""

import json
import sys
from io import StringIO

import numpy as np
import onnx
import pytest
from rich.console import Console

from onnxqat.verification import run
from tests.models import model, random
from tests.verification.saturating import LAYERS, Layer, expected


def text_of(report):
    console = Console(file=StringIO(), width=160)
    console.print(report)
    return console.file.getvalue()


def report_of(layer, proto=None, **options):
    proto = proto or layer.model()
    return run.verify(proto, proto, [layer.inputs() | options.pop("label", {})], **options)


def tamed(proto):
    """The model with weights of a quarter the codes."""
    held = next(tensor for tensor in proto.graph.initializer if tensor.name == "c")
    held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held) // 4, "c"))
    return proto


@pytest.mark.parametrize("runtime", ["ort", "openvino"])
def test_proof_comes_first_where_no_pair_can_saturate(runtime):
    layer = LAYERS["2-D"]
    report = report_of(layer, tamed(layer.model()), runtime=runtime)
    proof = "x86 without VNNI: 0 of 288 pairs of weights, in 1 layer, can saturate, so it computes the same integers."
    assert text_of(report).startswith(proof)
    assert "Remedy" not in text_of(report)
    written = json.loads(report.to_json())
    assert next(iter(written)) == "saturation"
    found = written["saturation"]
    assert found["proof"] == proof
    assert (found["pairs"], found["can_saturate"], found["other"]) == (288, 0, None)


def test_pairs_that_can_saturate_are_counted_by_layer():
    layer = LAYERS["2-D"]
    codes = layer.weights["c"].astype(int)
    sums = codes[:, 0::2] + codes[:, 1::2]
    count = np.count_nonzero(255 * np.abs(sums) > 2**15 - 1)
    report = report_of(layer)
    assert f"{count} of 288 pairs of weights, in 1 of 1 layer, can saturate" in text_of(report)
    (found,) = report.saturation.layers
    lossy, exact = expected(layer, "taps"), expected(layer, None)
    assert (found.node, found.op_type, found.pairs, found.can_saturate) == ("layer", "Conv", 288, count)
    assert found.changed == pytest.approx(np.mean(lossy != exact))
    assert found.largest == np.abs(lossy - exact).max()


def test_other_kind_of_processor_is_scored_beside_this_machine():
    layer = LAYERS["gemm, float"]
    exact, lossy = expected(layer, None).argmax(axis=1), expected(layer, "taps").argmax(axis=1)
    share = np.mean(exact == lossy)
    assert 0 < share < 1
    report = report_of(layer, label={"label": exact})
    other = report.saturation.other
    here, there = (1, share) if other.saturates else (share, 1)
    assert (report.deployed, other.score, other.same_as_here) == pytest.approx((here, there, share))
    assert (report.agreement, other.agreement) == pytest.approx((here, there))
    text = text_of(report)
    assert "without VNNI" in text
    assert "same top-1 as this machine" in text
    assert json.loads(report.to_json())["saturation"]["other"]["saturates"] == other.saturates


def test_session_option_is_a_remedy_of_onnxruntime_only():
    layer = LAYERS["2-D"]
    ort, openvino = (text_of(report_of(layer, runtime=runtime)) for runtime in ("ort", "openvino"))
    assert "overflow_fix 'pairs'" in ort
    assert "overflow_fix 'pairs'" in openvino
    assert "session.x64quantprecision=1" in ort
    assert "session.x64quantprecision" not in openvino


def test_layer_that_saturates_in_openvino_on_avx512_alone_is_named_so():
    layer = Layer("Conv", (1, 1, 9, 9), (8, 1, 3, 3), attributes={"kernel_shape": [3, 3]})
    report = report_of(layer, runtime="openvino")
    (found,) = report.saturation.layers
    assert found.can_saturate > 0
    assert (found.on_avx2, found.changed, report.saturation.other) == (0, None, None)
    assert "on AVX-512 only" in text_of(report)


def test_layers_that_run_in_float_have_no_pairs(network):
    model = network("[t] h = Tanh(xd) [conv] y = Conv(h, w1d)")
    report = run.verify(model, model, [{"x": np.ones((1, 2, 4, 4), np.float32)}])
    assert report.saturation.layers == ()
    assert "no layer adds products of weights in pairs that could saturate" in text_of(report)


def test_products_of_two_activations_in_openvino_are_named():
    body = """(float[N,5,8] x, float[N,8,6] z) => (float[N,5,6] y) {
        p = QuantizeLinear(x, s, o) a = DequantizeLinear(p, s, o) q = QuantizeLinear(z, s, o) b = DequantizeLinear(q, s, o)
        [scores] y = MatMul(a, b) }"""
    proto = model(body, s=np.float32(0.05), o=np.int8(0))
    batch = {"x": random(2, 5, 8), "z": random(2, 8, 6)}
    openvino, ort = (run.verify(proto, proto, [batch], runtime=runtime) for runtime in ("openvino", "ort"))
    named = "but for products of two activations, which depend on the data and are not covered: 'scores'."
    assert named in openvino.saturation.proof
    assert json.loads(openvino.to_json())["saturation"]["products"] == ["scores"]
    assert ort.saturation.products == ()


@pytest.mark.parametrize(
    ("lowest", "largest", "named"), [(-128, 127, ["scores"]), (-64, 63, [])], ids=["8 bits", "7 bits"]
)
def test_products_of_two_activations_are_exact_where_one_side_has_7_bits(lowest, largest, named, monkeypatch):
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    body = """(float[N,5,8] x, float[N,8,6] z) => (float[N,5,6] y) {
        p = QuantizeLinear(x, s, o) a = DequantizeLinear(p, s, o)
        q = QuantizeLinear(z, s, o) c = Clip(q, low, high) b = DequantizeLinear(c, s, o) [scores] y = MatMul(a, b) }"""
    proto = model(body, s=np.float32(1), o=np.int8(0), low=np.int8(lowest), high=np.int8(largest))
    batch = {"x": np.full((2, 5, 8), 127, np.float32), "z": np.full((2, 8, 6), 127, np.float32)}
    report = run.verify(proto, proto, [batch], runtime="openvino", interpreter=sys.executable)
    assert list(report.saturation.products) == named
    (product,) = report.outputs
    assert (product.largest > 0) == bool(named)


def _up(group):
    attributes = {"strides": [2, 2], "group": group}
    return Layer("ConvTranspose", (2, 4, 7, 7), (4, 3, 3, 3), zero=0, writes=False, attributes=attributes)


def _volume(inputs):
    attributes = {"kernel_shape": [3, 3, 3], "group": 2}
    return Layer("Conv", (1, 2 * inputs, 4, 5, 6), (2 * inputs, inputs, 3, 3, 3), attributes=attributes)


@pytest.mark.parametrize(
    "layer", [_up(1), _volume(2), _volume(1)], ids=["ConvTranspose", "grouped 3-D Conv", "depthwise 3-D Conv"]
)
@pytest.mark.parametrize("change", [lambda proto: proto, tamed], ids=["extreme weights", "small weights"])
def test_layers_of_openvino_that_follow_no_known_rule_are_named_and_left_as_they_are(layer, change):
    found = report_of(layer, change(layer.model()), runtime="openvino").saturation
    assert (found.layers, found.unknown, found.other) == ((), ("layer",), None)
    assert found.proof == (
        "x86 without VNNI: no other layer adds products of weights in pairs that could saturate, so it computes the same "
        "integers. Not covered: 1 layer ('layer'): what a processor without VNNI computes for it is not known."
    )


def test_grouped_transposed_convolution_of_a_scale_per_channel_runs_in_float_in_openvino():
    found = report_of(_up(2), runtime="openvino").saturation
    assert (found.layers, found.unknown, found.other) == ((), (), None)


def test_grouped_3d_convolutions_of_onnxruntime_follow_the_rule():
    found = report_of(_volume(2)).saturation
    assert ([layer.node for layer in found.layers], found.unknown) == (["layer"], ())
