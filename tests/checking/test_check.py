"""`check`: what targets say of models, ours and those of other tools."""

import json
import re

import ml_dtypes
import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxqat
from onnxqat.cli import app
from onnxqat.config import Config
from onnxqat.errors import InputError, UnsupportedModelError
from onnxqat.folding import fold
from onnxqat.insertion import insert
from onnxqat.targets import TARGETS
from tests.models import batches, model, quantized_by_onnxruntime, quantized_by_onnxruntime_for_qnn, session
from tests.models import random as r

BODY = "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) d = Conv<pads=[1,1,1,1]>(r, u, e) s = Add(d, x) q = Relu(s)"
WEIGHTS = {
    "w": r(16, 16, 3, 3),
    "u": r(16, 16, 3, 3, seed=1),
    "b": r(16),
    "e": r(16, seed=1),
    "g": r(1024, 16),
    "k": r(16, 16),
    "n": r(16, seed=2),
}


def network() -> onnx.ModelProto:
    text = f"(float[2,16,8,8] x) => (float[2,16] y) {{ {BODY} f = Flatten(q) h = Gemm(f, g) m = MatMul(h, k) y = Add(m, n) }}"
    return model(text, **WEIGHTS)


def deployed(target: str) -> onnx.ModelProto:
    proto = network()
    return fold(insert(proto, batches(proto, 1), Config(target=target)))


def pair(name: str, source: str, scale: str = "sx", point: str = "zx") -> str:
    return (
        f"{name}_q = QuantizeLinear({source}, {scale}, {point}) {name} = DequantizeLinear({name}_q, {scale}, {point})"
    )


CODES = {"sx": np.float32(0.02), "zx": np.int8(0), "s2": np.float32(0.03), "sw": np.full(16, 0.01, np.float32)}
WEIGHT = "wd = DequantizeLinear<axis=0>(wi, sw)"


def written(nodes: str, header: str = "(float[2,16,8,8] x) => (float[2,16,8,8] y)", **more: object) -> onnx.ModelProto:
    """A Q/DQ model from text, with int8 weights `wd`, and the constants that the nodes read."""
    held = CODES | {"wi": np.ones((16, 16, 1, 1), np.int8), "wf": r(16, 16, 1, 1)} | more
    body = f"{WEIGHT} {nodes}" if re.search(r"\bwd\b", nodes) else nodes
    used = {name: value for name, value in held.items() if re.search(rf"\b{name}\b", body)}
    return model(f"{header} {{ {body} }}", opset=19, ir_version=9, **used)


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_in_our_own_model_is_refused_or_split(target):
    findings = onnxqat.check(deployed(target))
    assert (findings.target, findings.refused, findings.of("split")) == (target, (), ())


def test_model_of_another_tool_for_the_cpu_is_refused_for_tensorrt_by_name(tmp_path):
    findings = onnxqat.check(quantized_by_onnxruntime(network(), tmp_path), "tensorrt")
    told = [str(one) for one in findings.refused]
    assert any(
        "QuantizeLinear 'x_QuantizeLinear': its codes are uint8, and TensorRT takes float8e4m3fn or int8" in one
        for one in told
    )
    assert any("its zero point is not 0, as TensorRT demands" in one for one in told)
    assert any("takes biases as floats, without a DequantizeLinear; store the bias as float32" in one for one in told)
    assert all(one.remedy for one in findings.refused)


def test_model_of_another_tool_for_the_cpu_has_nothing_to_say_on_the_cpu(tmp_path):
    assert not onnxqat.check(quantized_by_onnxruntime(network(), tmp_path), "ort-cpu").refused


ENCODER = """(float[2,4,8] x) => (float[2,4,8] y) { m = MatMul(x, w) n = LayerNormalization(m, s, b) g = Sigmoid(n)
    h = Softmax(n) a = Mul(g, h) t = Tanh(a) c = Concat<axis=1>(t, a) z = Slice(c, zero, four, one) y = MatMul(z, w) }"""
ENCODER_WEIGHTS = {
    "w": r(8, 8),
    "s": r(8),
    "b": r(8),
    "zero": np.array([0]),
    "four": np.array([4]),
    "one": np.array([1]),
}


@pytest.mark.parametrize("proto", [network(), model(ENCODER, **ENCODER_WEIGHTS)], ids=["network", "encoder"])
def test_model_of_onnxruntime_for_qnn_has_nothing_to_say_there_and_is_refused_for_tensorrt(proto, tmp_path):
    theirs = quantized_by_onnxruntime_for_qnn(proto, tmp_path)
    assert not list(onnxqat.check(theirs, "qnn"))
    assert onnxqat.check(theirs, "tensorrt").refused


CLIPPED = f"{pair('d', 'x')} q = Clip(d_q, zx, zx) e = DequantizeLinear(q, sx, zx) y = Conv(e, wd)"
BIASED = f"{pair('d', 'x')} bd = DequantizeLinear<axis=0>(bi, sw) y = Conv(d, wd, bd)"
FLOAT8 = ml_dtypes.float8_e4m3fn
FLOAT8_WEIGHT = "we_q = QuantizeLinear(wf, sx, zf) we = DequantizeLinear(we_q, sx, zf)"
SKIP = f"{pair('d', 'x')} c = Conv(d, wd)"


def joined(point: str) -> str:
    """A Conv behind a Concat of values that are quantized with this zero point."""
    return (
        f"{SKIP} {pair('e', 'c', 'sx', point)} h = Tanh(c) {pair('f', 'h', 'sx', point)} t = Transpose<perm=[0,1,3,2]>(f) "
        "k = Concat<axis=2>(e, t) y = Conv(k, wd)"
    )


@pytest.mark.parametrize(
    ("target", "nodes", "kind", "told"),
    [
        ("tensorrt", f"{SKIP} y = Add(c, x)", "split", "its short cut 'x' is float, so that Conv 'c' writes float"),
        (
            "tensorrt",
            f"{SKIP} {pair('e', 'c')} y = Add(e, d)",
            "split",
            "whose kernel would add it; quantize the short cut",
        ),
        ("tensorrt", f"{SKIP} {pair('e', 'c')} y = Relu(e)", "split", "a pair stands between it and Relu"),
        ("tensorrt", f"{SKIP} y = Add(c, d)", "", ""),
        ("openvino", f"{SKIP} {pair('e', 'c')} y = Add(e, d)", "split", "whose kernel would add it"),
        ("tensorrt", f"{SKIP} {pair('e', 'x', 's2')} f = Conv(e, wd) y = Add(c, f)", "split", "is quantized 2 times"),
        (
            "tensorrt",
            f"{SKIP} {pair('e', 'c')} h = Sigmoid(x) {pair('f', 'h', 's2')} k = Concat<axis=2>(e, f) y = Conv(k, wd)",
            "split",
            "its inputs have several scales; give all inputs one scale",
        ),
        ("tensorrt", f"{pair('d', 'x')} y = Conv(d, wf)", "float", "reads weight 'wf' in float; quantize it"),
        (
            "tensorrt",
            f"{pair('d', 'x', 'sx', 'zf')} y = Conv(d, wd)",
            "refused",
            "multiplies float8e4m3fn data with int8 weights, for which TensorRT has no kernel",
        ),
        ("tensorrt", f"{pair('d', 'x', 'sx', 'zf')} {FLOAT8_WEIGHT} y = Conv(d, we)", "", ""),
        (
            "qnn",
            f"{pair('d', 'x', 'sx', 'zf')} y = Conv(d, wd)",
            "refused",
            "its codes are float8e4m3fn, and QNN takes",
        ),
        ("tensorrt", CLIPPED, "refused", "a Clip of integers stands between its nodes; fold the model"),
        (
            "qnn",
            f"{SKIP} {pair('e', 'c')} y = Add(e, d)",
            "refused",
            "its codes are int8, and QNN takes uint16 or uint8",
        ),
        ("qnn", f"{pair('d', 'x', 'sx', 'zu')} c = Conv(d, wd) y = Add(c, d)", "split", "reads 'c', which has no pair"),
        (
            "ort-cpu",
            f"{pair('d', 'x', 'sx', 'zw')} y = Conv(d, wd)",
            "float",
            "its codes are uint16, and ONNX Runtime takes",
        ),
        ("ort-cpu", f"{pair('d', 'x', 'sw', 'zc')} y = Conv(d, wd)", "float", "its scale is per channel"),
        (
            "openvino",
            joined("zx"),
            "refused",
            "it reads int8 codes beside Concat 'k', and on x86 without AMX layers behind it",
        ),
        ("openvino", joined("zu"), "", ""),
        ("ort-cpu", BIASED, "refused", "the scale of its bias is not input scale times weight scale"),
    ],
)
def test_what_a_target_would_do_is_told_with_node_fact_and_remedy(target, nodes, kind, told):
    more = {
        "zu": np.uint8(128),
        "zw": np.uint16(0),
        "zc": np.zeros(16, np.int8),
        "zf": FLOAT8(0),
        "bi": np.ones(16, np.int32),
    }
    findings = onnxqat.check(_opset(written(nodes, **more), 21 if "zw" in nodes else 19), target)
    found = [one for one in findings if one.kind in ("refused", "split")] if not kind else findings.of(kind)
    assert [told in str(one) for one in found if told in str(one)][:1] == [True] * bool(kind), [*map(str, findings)]


def _opset(proto: onnx.ModelProto, version: int) -> onnx.ModelProto:
    proto.opset_import[0].version = version
    proto.ir_version = 10
    return proto


def test_operators_with_integers_of_their_own_are_refused_for_tensorrt(tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    onnx.save(network(), tmp_path / "m.onnx")
    quantize_dynamic(tmp_path / "m.onnx", tmp_path / "q.onnx")
    told = [str(one) for one in onnxqat.check(tmp_path / "q.onnx", "tensorrt").refused]
    assert any(
        re.search("DynamicQuantizeLinear.*: is not imported; give a model with QuantizeLinear", one) for one in told
    )


ENCODED = """(float[2,4,8] x) => (float[2,4,8] y) { m = MatMul(x, w) n = LayerNormalization(m, s, b) a = Add(n, x)
    k = LayerNormalization(a, s, b) t = Transpose<perm=[0,2,1]>(k) p = MatMul(k, t) y = MatMul(p, k) }"""


@pytest.mark.parametrize(
    ("target", "kind", "told"),
    [
        (
            "tensorrt",
            "refused",
            "alone, which TensorRT does not have; export the model again without ONNX Runtime's opt",
        ),
        (
            "openvino",
            "refused",
            "alone, which OpenVINO does not have; export the model again without ONNX Runtime's opt",
        ),
        (
            "qnn",
            "split",
            "alone, which QNN leaves to the CPU; export the model again without ONNX Runtime's optimizations",
        ),
        ("ort-cpu", "", ""),
    ],
)
def test_operators_of_onnxruntime_alone_are_told_one_by_one(target, kind, told, tmp_path):
    for proto in (deployed("ort-cpu"), model(ENCODED, **{name: ENCODER_WEIGHTS[name] for name in "wsb"})):
        session(proto, optimized=tmp_path / "optimized.onnx")
        own = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx").graph.node if n.domain]
        found = [one for one in onnxqat.check(tmp_path / "optimized.onnx", target) if "ONNX Runtime alone" in one.fact]
        assert own
        assert [(one.kind, one.fact.split()[0]) for one in found] == [(kind, name) for name in own if kind]
        assert all(told in str(one) for one in found)


@pytest.mark.parametrize("target", TARGETS)
def test_custom_operator_is_refused_by_name(target):
    proto = model("(float[2] x) => (float[2] y) { y = Relu(x) }")
    proto.graph.node[0].MergeFrom(onnx.NodeProto(op_type="Own", domain="my.domain", name="own"))
    proto.opset_import.add(domain="my.domain", version=1)
    (refused,) = [one for one in onnxqat.check(proto, target).refused if "size" not in one.fact]
    assert "Own 'own': Own of domain 'my.domain' is a custom operator" in str(refused)


def test_free_size_is_refused_for_the_npu():
    proto = written(f"{pair('d', 'x')} y = Conv(d, wd)", "(float[N,16,8,8] x) => (float[N,16,8,8] y)")
    assert "input 'x': size 'N' of axis 0 is free" in str(onnxqat.check(proto, "qnn").refused[0])


def test_command_ends_with_1_only_where_the_model_is_refused(tmp_path):
    onnx.save(deployed("ort-cpu"), tmp_path / "m.onnx")
    run = CliRunner().invoke
    done = run(app, ["check", str(tmp_path / "m.onnx"), "--json", str(tmp_path / "found.json")])
    assert (done.exit_code, "0 refused, 0 split" in done.output) == (0, True)
    assert json.loads((tmp_path / "found.json").read_text())["target"] == "ort-cpu"
    refused = run(app, ["check", str(tmp_path / "m.onnx"), "--target", "tensorrt"])
    assert (refused.exit_code, "zero point is not 0" in " ".join(refused.output.split())) == (1, True)


@pytest.mark.parametrize(
    ("target", "message"), [(None, "target: the model names none; say which"), ("tpu", "no target is called 'tpu'")]
)
def test_target_must_be_known(target, message):
    with pytest.raises(InputError, match=message):
        onnxqat.check(written(f"{pair('d', 'x')} y = Conv(d, wd)"), target)


def test_fold_refuses_what_the_target_would():
    proto = network()
    qdq = insert(proto, batches(proto, 1), Config(target="tensorrt"))
    (point,) = [i for i in qdq.graph.initializer if i.name == "x_zero_point"]
    point.CopyFrom(onnx.numpy_helper.from_array(np.int8(3), "x_zero_point"))
    with pytest.raises(
        UnsupportedModelError, match="deployed model for tensorrt: QuantizeLinear 'x_q': its zero point is not 0"
    ):
        fold(qdq)
