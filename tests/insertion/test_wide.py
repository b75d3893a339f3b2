"""Activations of 16 bits: which values have them, and where they are converted to and from 8."""

import logging

import numpy as np
import onnx
import pytest

import onnxqat
from onnxqat.config import Config
from onnxqat.config_parts import Override
from onnxqat.errors import InputError
from onnxqat.folding import fold
from onnxqat.insertion import insert
from tests.models import array, batches, decibels, model, outputs
from tests.models import random as r

TYPES = {onnx.TensorProto.UINT8: "8", onnx.TensorProto.UINT16: "16", onnx.TensorProto.INT8: "s8"}
LAYERS = """(float[2,4,8] x) => (float[2,4,8] y) { m = MatMul(x, w) a = Add(m, x) n = LayerNormalization(a, s, b)
    y = MatMul(n, w2) }"""
WEIGHTS = {"w": r(8, 8), "w2": r(8, 8, seed=1), "s": r(8, seed=2) + np.float32(1), "b": r(8, seed=3)}
NORM = Override(type="LayerNormalization", activation_bits=16)


def quantized(body: str, settings: dict, target: str = "qnn", **weights: np.ndarray) -> onnx.ModelProto:
    proto = model(body, **weights)
    return insert(proto, batches(proto, 1), Config(target=target, **settings))


def widths(proto: onnx.ModelProto) -> str:
    """Operators in order, activations' quantizers as their numbers of bits; others, and DequantizeLinear, are left out."""
    types = {i.name: i.data_type for i in proto.graph.initializer}
    shown = []
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in types:
            shown.append(TYPES[types[node.input[2]]])
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear") and not node.output[0].endswith("_qc"):
            shown.append(node.op_type)
    return " ".join(shown)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"activation_bits": 16}, "16 MatMul 16 Add 16 LayerNormalization 16 MatMul 16"),
        # the Add computes on 16 bits, to write what the normalization reads, and reads what it has
        ({"overrides": [NORM]}, "16 8 MatMul 8 16 Add 16 LayerNormalization 16 8 MatMul 8"),
        (
            {"activation_bits": 16, "overrides": [Override(type="LayerNormalization", activation_bits=8)]},
            "16 MatMul 16 Add 16 8 LayerNormalization 8 16 MatMul 16",
        ),
    ],
)
def test_kernels_of_the_npu_write_what_they_compute_on_and_widths_meet_in_a_pair_of_their_own(settings, expected):
    assert widths(quantized(LAYERS, settings, **WEIGHTS)) == expected


def test_weights_stay_int8_scales_of_normalizations_uint8_and_constant_operands_follow_the_activations():
    body = LAYERS.replace("y = MatMul(n, w2)", "p = Mul(n, k) y = MatMul(p, w2)")
    folded = fold(quantized(body, {"activation_bits": 16}, k=r(8), **WEIGHTS))
    types = {i.name: i.data_type for i in folded.graph.initializer}
    stored = {name: types[f"{name}_quantized"] for name in ("w", "w2", "s", "k")}
    kinds = onnx.TensorProto
    assert stored == {"w": kinds.INT8, "w2": kinds.INT8, "s": kinds.UINT8, "k": kinds.UINT16}
    assert folded.opset_import[0].version == 21


def test_npu_reads_the_second_operand_of_a_product_with_8_bits():
    body = "(float[2,8,8] x) => (float[2,8,8] y) { a = MatMul(x, w) b = MatMul(x, w2) y = MatMul(a, b) }"
    qdq = quantized(body, {"activation_bits": 16}, w=WEIGHTS["w"], w2=WEIGHTS["w2"])
    product = [node for node in qdq.graph.node if node.op_type == "MatMul"][-1]
    pairs = [next(node for node in qdq.graph.node if node.output[0] == name) for name in product.input]
    assert [array(qdq, pair.input[2]).dtype for pair in pairs] == [np.uint16, np.uint8]


def test_operator_that_the_npu_computes_on_8_bits_only_keeps_them_and_is_named(caplog):
    body = "(float[2,4,8] x) => (float[2,4,8] y) { m = MatMul(x, w) l = Softplus(m) y = MatMul(l, w2) }"
    qdq = quantized(body, {"activation_bits": 16}, w=WEIGHTS["w"], w2=WEIGHTS["w2"])
    assert widths(qdq) == "16 MatMul 16 8 Softplus 8 16 MatMul 16"
    assert "QNN computes these on 8 bits only, so they keep 8: Softplus 'Softplus'" in caplog.text


def test_on_cpus_16_bits_are_a_simulation_that_insert_and_the_report_call_one(caplog):
    with caplog.at_level(logging.WARNING):
        qdq = quantized(LAYERS, {"activation_bits": 16}, "ort-cpu", **WEIGHTS)
    assert "has no kernels for them and simulates them" in caplog.text
    folded, data = fold(qdq), batches(qdq, 1)
    np.testing.assert_allclose(outputs(folded, data[0]), outputs(qdq, data[0]), atol=1e-4)
    report = onnxqat.verify(qdq, folded, data, runtime="ort")
    assert "activations of 16 bits are a simulation in onnxruntime" in report.hint
    assert report.integer_count()[0] == 0


def test_scales_of_16_bits_are_trained_and_deployed_like_others():
    qdq = quantized(LAYERS, {"activation_bits": 16}, **WEIGHTS)
    trainer = onnxqat.Trainer(qdq, loss="mse", optimizer=onnxqat.AdamW(lr=1e-3))
    batch = {"x": r(2, 4, 8, scale=1.0), "label": np.zeros((2, 4, 8), np.float32)}
    losses = [trainer.step(batch) for _ in range(3)]
    trained = trainer.model()
    assert losses[-1] < losses[0]
    assert array(trained, "a_scale") != array(qdq, "a_scale")
    inputs = {"x": batch["x"]}
    np.testing.assert_allclose(outputs(fold(trained), inputs)[0], outputs(trained, inputs)[0], atol=1e-4)


def test_openvino_which_leaves_out_quantizers_of_16_bits_is_refused():
    with pytest.raises(InputError, match="activation_bits is 16, and OpenVINO runs activations of 2 to 8 bits"):
        quantized(LAYERS, {"activation_bits": 16}, "openvino", **WEIGHTS)


@pytest.mark.parametrize("bits", [9, 12, 17])
def test_widths_between_8_and_16_are_refused(bits):
    with pytest.raises(InputError, match=r"activation_bits: (give 2 to 8, or 16|it must be less than or equal to 16)"):
        Config(activation_bits=bits)


def test_a_clip_below_the_range_of_16_bits_stands_between_two_pairs():
    body = "(float[2,4,8] x) => (float[2,4,8] y) { m = MatMul(x, w) y = Clip(m, low, high) }"
    qdq = quantized(body, {"activation_bits": 16}, "ort-cpu", w=WEIGHTS["w"], low=np.float32(0), high=np.float32(0.2))
    assert widths(fold(qdq)) in ("16 MatMul Clip", "16 MatMul 16 Clip 16")


FAR = """(float[2,4,8] x) => (float[2,4,8] y) { a = MatMul(x, w) b = MatMul(x, w2) n = Add(b, far) m = Sub(n, far)
    y = Add(a, m) }"""


def test_auto_gives_16_bits_to_the_values_whose_8_bits_make_most_of_the_noise(caplog):
    constants = {"w": WEIGHTS["w"], "w2": WEIGHTS["w2"], "far": np.float32(300)}
    qdq = quantized(FAR, {"sixteen": "auto"}, **constants)
    assert "sixteen: auto" not in caplog.text  # which is asked for already
    types = {i.name: i.data_type for i in qdq.graph.initializer}
    first = {n.input[0]: TYPES[types[n.input[2]]] for n in qdq.graph.node if n.op_type == "QuantizeLinear"}
    assert {name: first[name] for name in "xabn"} == {"x": "8", "a": "8", "b": "8", "n": "16"}
    proto = model(FAR, **constants)
    expected, found, coarse = (
        outputs(one, batches(proto, 1)[0])[0] for one in (proto, qdq, quantized(FAR, {}, **constants))
    )
    assert decibels(expected, found) > decibels(expected, coarse) + 15


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_auto_is_refused_where_16_bits_would_be_a_simulation(target):
    with pytest.raises(InputError, match=r"sixteen is auto, and .* has no kernels for activations of 16 bits"):
        quantized(LAYERS, {"sixteen": "auto"}, target, **WEIGHTS)
