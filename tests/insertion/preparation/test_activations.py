"""HardSigmoid and HardSwish that exporters write as arithmetic, and what they leave to run in float."""

from io import StringIO

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType
from rich.console import Console

from onnxqat import verify
from onnxqat.folding import fold
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.insertion.preparation import prepare
from tests import stock
from tests.insertion.cases import INTEGER, image
from tests.models import batches, kernels, model, optimized, outputs, quantized_by_onnxruntime, random

NUMBERS = {"three": 3.0, "six": 6.0, "sixth": 1 / 6, "half": 0.5, "zero": 0.0, "one": 1.0, "fifth": 0.2, "five": 5.0}
NUMBERS |= {"low": -3.0, "high": 3.0}

SWISH = {
    "divided last": "s = Add(a, three) c = Clip(s, zero, six) m = Mul(a, c) k = Div(m, six)",
    "multiplied last": "s = Add(three, a) c = Clip(s, zero, six) m = Mul(c, a) k = Mul(sixth, m)",
    "divided first": "s = Add(a, three) c = Clip(s, zero, six) g = Div(c, six) k = Mul(a, g)",
    "other side divided": "s = Add(a, three) c = Clip(s, zero, six) g = Mul(a, sixth) k = Mul(g, c)",
    "by Min and Max": "s = Add(a, three) l = Max(s, zero) c = Min(l, six) m = Mul(a, c) k = Div(m, six)",
    "by Relu and Min": "s = Add(a, three) l = Relu(s) c = Min(l, six) m = Mul(a, c) k = Div(m, six)",
    "scaled first": "g = Mul(a, sixth) s = Add(g, half) c = Clip(s, zero, one) k = Mul(a, c)",
    "by HardSigmoid": "c = HardSigmoid<alpha=0.16666667>(a) k = Mul(a, c)",
}
SIGMOID = {
    "PyTorch": "s = Add(a, three) c = Clip(s, zero, six) k = Div(c, six)",
    "Keras 2": "g = Mul(a, fifth) s = Add(g, half) k = Clip(s, zero, one)",
    "subtracted": "s = Sub(a, low) c = Clip(s, zero, six) k = Mul(c, sixth)",
}
OTHER = {
    "ReLU6 divided": "c = Clip(a, zero, six) k = Div(c, six)",
    "not divided": "s = Add(a, three) c = Clip(s, zero, six) k = Mul(a, c)",
    "divided by another": "s = Add(a, three) c = Clip(s, zero, six) k = Div(c, five)",
    "gate of another value": "s = Add(a, three) c = Clip(s, zero, six) o = Tanh(a) m = Mul(o, c) k = Div(m, six)",
    "clipped elsewhere": "s = Add(a, three) c = Clip(s, low, high) m = Mul(a, c) k = Div(m, six)",
    "read elsewhere": "s = Add(a, three) c = Clip(s, zero, six) g = Div(c, six) e = Add(c, g) k = Mul(a, e)",
}


def activated(nodes: str, opset: int = 17) -> onnx.ModelProto:
    used = {n: np.float32(v) for n, v in NUMBERS.items() if f" {n})" in nodes or f"({n}," in nodes or f" {n}," in nodes}
    return image(
        f"a = Conv<pads=[1,1,1,1]>(x, w, b) {nodes} y = Conv(k, v, d)",
        opset=opset,
        w=random(4, 4, 3, 3, scale=1.0),
        **used,
    )


def prepared(nodes: str, opset: int = 17) -> onnx.ModelProto:
    proto = io.to_proto(prepare(activated(nodes, opset)))
    (batch, *_) = batches(proto)
    np.testing.assert_allclose(outputs(proto, batch)[0], outputs(activated(nodes, opset), batch)[0], atol=1e-5)
    return proto


@pytest.mark.parametrize("nodes", SWISH.values(), ids=SWISH)
def test_hard_swish_written_as_arithmetic_becomes_one_operator(nodes):
    assert [node.op_type for node in prepared(nodes).graph.node] == ["Conv", "HardSwish", "Conv"]


@pytest.mark.parametrize("nodes", SWISH.values(), ids=SWISH)
def test_before_opset_14_it_becomes_a_product_with_hard_sigmoid(nodes):
    assert sorted(node.op_type for node in prepared(nodes, opset=13).graph.node) == [
        "Conv",
        "Conv",
        "HardSigmoid",
        "Mul",
    ]


@pytest.mark.parametrize("nodes", SIGMOID.values(), ids=SIGMOID)
def test_hard_sigmoid_written_as_arithmetic_becomes_one_operator(nodes):
    assert [node.op_type for node in prepared(nodes).graph.node] == ["Conv", "HardSigmoid", "Conv"]


@pytest.mark.parametrize("nodes", OTHER.values(), ids=OTHER)
def test_what_only_resembles_them_is_left_alone(nodes):
    assert not {"HardSwish", "HardSigmoid"} & {node.op_type for node in prepared(nodes).graph.node}


PARTS = {
    "swish": "{y}s = Add({x}, three) {y}c = Clip({y}s, zero, six) {y}m = Mul({x}, {y}c) {y} = Div({y}m, six)",
    "sigmoid": "{y}s = Add({x}, three) {y}c = Clip({y}s, zero, six) {y} = Div({y}c, six)",
}


def mobile() -> onnx.ModelProto:
    """Two blocks of MobileNetV3: inverted bottlenecks with squeeze-excite and a residual."""
    blocks, weights = "", {}
    for n, (last, result) in enumerate([("x", "m"), ("m", "y")]):
        blocks += f"""
            a{n} = Conv({last}, we{n}, be) {PARTS["swish"].format(x=f"a{n}", y=f"f{n}")}
            b{n} = Conv<group=16, pads=[1,1,1,1]>(f{n}, wg{n}, be) {PARTS["swish"].format(x=f"b{n}", y=f"h{n}")}
            p{n} = GlobalAveragePool(h{n}) q{n} = Conv(p{n}, wq{n}, bq) r{n} = Relu(q{n}) t{n} = Conv(r{n}, wt{n}, be)
            {PARTS["sigmoid"].format(x=f"t{n}", y=f"u{n}")} z{n} = Mul(h{n}, u{n}) o{n} = Conv(z{n}, wo{n}, bo)
            {result} = Add(o{n}, {last})"""
        shapes = {
            "we": (16, 8, 1, 1),
            "wg": (16, 1, 3, 3),
            "wq": (4, 16, 1, 1),
            "wt": (16, 4, 1, 1),
            "wo": (8, 16, 1, 1),
        }
        weights |= {f"{name}{n}": random(*shape, seed=n) for name, shape in shapes.items()}
    constants = {name: np.float32(NUMBERS[name]) for name in ("three", "six", "zero")}
    biases = {"be": random(16), "bq": random(4), "bo": random(8)}
    return model(f"(float[N,8,8,8] x) => (float[N,8,8,8] y) {{ {blocks} }}", **weights, **biases, **constants)


def idle(graph: onnx.GraphProto) -> list[str]:
    """Names of the QuantizeLinear nodes whose codes are made of floats and read as floats only."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    quantize = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    return [node.name for node in quantize if readers.get(node.output[0], set()) <= {"DequantizeLinear"}]


DENSE = {"w": random(8, 8), "b": random(8), "v": random(8, 8, seed=2)}
PLACED = {
    "MobileNetV3": mobile(),
    "activation read in float": model(
        "(float[N,8] x) => (float[N,8] y) { a = Gemm(x, w, b) r = Relu(a) t = Tanh(r) y = Gemm(t, v, b) }", **DENSE
    ),
    "clipped and read in float": model(
        "(float[N,3,8] x) => (float[N,3,8] y) { a = MatMul(x, w) r = Clip(a, zero, six) y = Softmax(r) }",
        w=DENSE["w"],
        zero=np.float32(0),
        six=np.float32(6),
    ),
    **{name: INTEGER[name] for name in ("residual", "squeeze-excite, hard", "hard swish", "swish", "head", "concat")},
}


@stock.needs_stock
@pytest.mark.parametrize("name", PLACED)
def test_every_pair_that_is_left_has_an_integer_kernel_beside_it(name):
    proto = PLACED[name]
    (batch, *_) = data = batches(proto)
    deployed = fold(insert(proto, data))
    for graph in (optimized(deployed), stock.executed(deployed, batch)[1]):
        assert idle(graph) == []
        assert not {"Gemm", "FusedGemm", "MatMul", "Conv", "FusedConv"} & {node.op_type for node in graph.node}


def test_fewer_pairs_are_left_than_by_onnxruntimes_own_tool(tmp_path):
    proto = mobile()
    theirs = kernels(quantized_by_onnxruntime(proto, tmp_path, per_channel=True, activation_type=QuantType.QInt8))
    ours = kernels(fold(insert(proto, batches(proto))))
    pairs = ("QuantizeLinear", "DequantizeLinear")
    assert sum(ours[kind] for kind in pairs) < sum(theirs[kind] for kind in pairs)
    assert ours["QLinearMul"] == 2


def test_verify_says_in_one_line_what_stays_in_float_on_purpose():
    proto = mobile()
    data = batches(proto)
    quantized = insert(proto, data)
    report = verify(quantized, fold(quantized), data)
    written = StringIO()
    Console(width=500, file=written).print(report)
    (line,) = [line for line in written.getvalue().splitlines() if line.startswith("float")]
    assert line.strip() == (
        "float on purpose: 4 HardSwish (ort-cpu has no integer kernel for HardSwish); "
        "2 HardSigmoid (ort-cpu has no integer kernel for HardSigmoid); 1 Add (its output 'y' is read in float only)"
    )
