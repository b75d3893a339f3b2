"""Every entry of the targets' tables against what the runtimes execute: Conv → operator → Conv, inserted and folded."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest

from onnxqat.checking import check
from onnxqat.config import Config
from onnxqat.folding import fold
from onnxqat.graph import io, qdq
from onnxqat.graph.movement import quantizer_above
from onnxqat.insertion import insert
from onnxqat.insertion.patterns import MATCHERS
from onnxqat.targets import TARGETS
from onnxqat.verification import fusion
from onnxqat.verification.host import opened
from onnxqat.verification.run import kernels_of
from tests.models import batches, model, outputs
from tests.models import random as r
from tests.verification.conftest import stock_python  # noqa: F401  (a fixture)

#: Targets that run on a CPU; others are in files of their own.
ON_CPU = ["ort-cpu", "openvino"]
#: Operators whose results have a size that QNN, which takes fixed ones only, cannot know.
OF_FREE_SIZE = {"Compress"}

#: From t [4,4,8,8], what a Conv wrote, to k, which another Conv reads; u is what a second Conv wrote.
OPERATORS = {
    "Relu": "k = Relu(t)",
    "Clip": "k = Clip(t, zero, one)",
    "LeakyRelu": "k = LeakyRelu(t)",
    "PRelu": "k = PRelu(t, slope)",
    "Elu": "k = Elu(t)",
    "Celu": "k = Celu(t)",
    "Selu": "k = Selu(t)",
    "Sigmoid": "k = Sigmoid(t)",
    "Tanh": "k = Tanh(t)",
    "HardSigmoid": "k = HardSigmoid(t)",
    "HardSwish": "k = HardSwish(t)",
    "Swish": "s = Sigmoid(t) k = Mul(t, s)",
    "Mish": "k = Mish(t)",
    "Gelu": "k = Gelu(t)",
    "Softplus": "k = Softplus(t)",
    "Softsign": "k = Softsign(t)",
    "ThresholdedRelu": "k = ThresholdedRelu(t)",
    "Erf": "k = Erf(t)",
    "Exp": "k = Exp(t)",
    "Abs": "k = Abs(t)",
    "Neg": "p = Exp(t) k = Neg(p)",
    "Sin": "k = Sin(t)",
    "Floor": "k = Floor(t)",
    "Log": "p = Relu(t) q = Exp(p) k = Log(q)",
    "Reciprocal": "p = Relu(t) q = Exp(p) k = Reciprocal(q)",
    "Softmax": "k = Softmax<axis=1>(t)",
    "LogSoftmax": "k = LogSoftmax<axis=1>(t)",
    "Add": "k = Add(t, u)",
    "Sub": "k = Sub(t, u)",
    "Mul": "k = Mul(t, u)",
    "Min": "k = Min(t, u)",
    "Max": "k = Max(t, u)",
    "Pow": "p = Relu(t) q = Relu(u) k = Pow(p, q)",
    "Div": "p = Relu(u) q = Exp(p) k = Div(t, q)",
    "Sqrt": "p = Relu(t) k = Sqrt(p)",
    "Sum": "k = Sum(t, u)",
    "Mean": "k = Mean(t, u)",
    "Concat": "k = Concat<axis=2>(t, u)",
    "AveragePool": "k = AveragePool<kernel_shape=[2,2]>(t)",
    "GlobalAveragePool": "k = GlobalAveragePool(t)",
    "ReduceMean": "k = ReduceMean<keepdims=1>(t, last)",
    "ReduceSum": "k = ReduceSum<keepdims=1>(t, last)",
    "ReduceMax": "k = ReduceMax<keepdims=1>(t, last)",
    "ReduceMin": "k = ReduceMin<keepdims=1>(t, last)",
    "GlobalMaxPool": "k = GlobalMaxPool(t)",
    "LpPool": "k = LpPool<kernel_shape=[2,2]>(t)",
    "MaxPool": "k = MaxPool<kernel_shape=[2,2]>(t)",
    "Reshape": "s = Reshape(t, flat) k = Reshape(s, back)",
    "Transpose": "k = Transpose<perm=[0,1,3,2]>(t)",
    "Squeeze": "s = Unsqueeze(t, axis) k = Squeeze(s, axis)",
    "Unsqueeze": "s = Unsqueeze(t, axis) k = Squeeze(s, axis)",
    "Slice": "k = Slice(t, start, stop, axis)",
    "Flatten": "s = Flatten<axis=2>(t) k = Reshape(s, back)",
    "Gather": "k = Gather<axis=2>(t, rows)",
    "GatherElements": "k = GatherElements<axis=2>(t, elements)",
    "Split": "k0, k1 = Split<axis=2>(t, sizes) k = Concat<axis=2>(k1, k0)",
    "Resize": "k = Resize(t, , scales)",
    "Expand": "g = GlobalAveragePool(t) k = Expand(g, big)",
    "Tile": "k = Tile(t, times)",
    "Pad": "p = Pad(t, pads) k = MaxPool<kernel_shape=[3,3]>(p)",
    "DepthToSpace": "d2 = DepthToSpace<blocksize=2>(t) k = Reshape(d2, back)",
    "SpaceToDepth": "s = SpaceToDepth<blocksize=2>(t) k = Reshape(s, back)",
    "Compress": "k = Compress<axis=2>(t, chosen)",
    "ReverseSequence": "k = ReverseSequence<batch_axis=0, time_axis=1>(t, lengths)",
    "CumSum": "k = CumSum(t, two)",
    "Trilu": "k = Trilu(t)",
    "Einsum": 'k = Einsum<equation="nchw->ncwh">(t)',
    "InstanceNormalization": "k = InstanceNormalization(t, gamma, beta)",
    "LpNormalization": "k = LpNormalization<axis=1>(t)",
    "LRN": "k = LRN<size=3>(t)",
    "MeanVarianceNormalization": "k = MeanVarianceNormalization(t)",
    "LayerNormalization": "k = LayerNormalization<axis=3>(t, gamma8, beta8)",
    "Conv": "k = Conv(t, cw, gamma)",
    "ConvTranspose": "k = ConvTranspose(t, cw, gamma)",
    "MatMul": "k = MatMul(t, mw)",
    "Gemm": "s = Reshape(t, rows8) g = Gemm(s, mw, beta8) k = Reshape(g, back)",
    "LSTM": "s = Reshape(t, steps) l, h, c = LSTM<hidden_size=8>(s, lw, lr) k = Reshape(l, back)",
    "GRU": "s = Reshape(t, steps) l, h = GRU<hidden_size=8>(s, gw, gr) k = Reshape(l, back)",
}
VALUES = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "slope": r(4, 1, 1),
    "last": np.array([3]),
    "flat": np.array([0, -1]),
    "back": np.array([4, 4, 8, 8]),
    "axis": np.array([2]),
    "start": np.array([1]),
    "stop": np.array([5]),
    "rows": np.array([0, 2, 3]),
    "elements": np.zeros((4, 4, 3, 8), np.int64),
    "sizes": np.array([3, 5]),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "big": np.array([4, 4, 8, 8]),
    "times": np.array([1, 1, 2, 1]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "chosen": np.array([1, 0, 1, 1, 0, 0, 1, 1], bool),
    "lengths": np.full(4, 3),
    "two": np.array(2),
    "gamma": r(4) + np.float32(1),
    "beta": r(4),
    "gamma8": r(8) + np.float32(1),
    "beta8": r(8),
    "cw": r(4, 4, 1, 1, seed=3),
    "mw": r(8, 8),
    "rows8": np.array([-1, 8]),
    "steps": np.array([32, 4, 8]),
    "lw": r(1, 32, 8),
    "lr": r(1, 32, 8, seed=1),
    "gw": r(1, 24, 8),
    "gr": r(1, 24, 8, seed=1),
}
#: OpenVINO reads codes here, but its generated kernels compute in float.
FLOAT_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Min", "Max", "Sqrt", "Pow"}
#: Data movement for which there is no integer kernel: the pair behind it only keeps its scale.
FLOAT_MOVEMENT = {("ort", "Pad"), ("openvino", "Tile")}
#: Those that join signed values along another axis than the channels': what reads them is right, and in float.
FLOAT_BEHIND = {("openvino", "Concat"), ("openvino", "Split")}


def sandwich(nodes: str) -> onnx.ModelProto:
    used = {name: array for name, array in VALUES.items() if re.search(rf"\b{name}\b", nodes)}
    second = "u = Conv(r, v2, d)" if re.search(r"\bu\b", nodes) else ""
    body = f"a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) t = Conv(r, v1, d) {second} {nodes} y = Conv(k, v, d)"
    weights = {"w": r(4, 4, 3, 3), "b": r(4), "v": r(4, 4, 1, 1), "v1": r(4, 4, 1, 1, seed=1), "d": r(4, seed=1)}
    if second:
        weights["v2"] = r(4, 4, 1, 1, seed=2)
    return model(f"(float[4,4,8,8] x) => (float[A,B,C,D] y) {{ {body} }}", opset=20, ir_version=9, **weights, **used)


@pytest.fixture(scope="module")
def runtimes(stock_python):  # noqa: F811
    """Each runtime, started once."""
    with opened("ort", stock_python) as ort, opened("openvino") as openvino:
        yield {"ort": ort, "openvino": openvino}


def executed(name: str, operator: str, runtimes) -> list[fusion.Kernel]:
    proto = sandwich(OPERATORS[operator])
    return kernels_of(
        runtimes[TARGETS[name].runtime], io.load(fold(insert(proto, batches(proto, 1), Config(target=name))))
    )


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ON_CPU)
def test_operator_runs_as_the_table_says_and_leaves_the_layers_around_it_integer(name, operator, runtimes, monkeypatch):
    table = TARGETS[name]
    hidden = {"QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "Identity"}
    monkeypatch.setattr(fusion, "NOT_REPORTED", frozenset(hidden - {operator}))
    kernels = executed(name, operator, runtimes)
    in_float = [k for k in kernels if k.op_type in table.operators.weighted and k.kind != "integer"]
    assert len(in_float) == ((table.runtime, operator) in FLOAT_BEHIND)
    kinds = {k.kind for k in kernels if k.op_type == operator}
    if operator in table.operators.absorbs or (table.runtime == "openvino" and operator in FLOAT_ARITHMETIC):
        assert len(kernels) > 2
    elif (table.runtime, operator) in FLOAT_MOVEMENT:
        assert kinds == {"float"}
    elif operator in table.operators.kernels | table.operators.moves | table.operators.joins:
        assert kinds <= {"integer", "absorbed"}
    elif operator not in table.operators.between:
        assert "integer" not in kinds


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("name", ON_CPU)
def test_layers_around_an_operator_compute_what_the_simulation_does(name, operator, runtimes):
    host, proto = runtimes[TARGETS[name].runtime], sandwich(OPERATORS[operator])
    qdq = insert(proto, batches(proto, 1), Config(target=name))
    (batch,) = batches(proto, 1)
    runtimes["ort"].load("simulated", io.load(qdq), simulate=True)
    host.load("deployed", io.load(fold(qdq)))
    expected, found = (
        next(iter(one.run(key, batch).values())) for one, key in ((runtimes["ort"], "simulated"), (host, "deployed"))
    )
    assert np.linalg.norm(found - expected) <= 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("name", "operator"),
    [
        (name, one)
        for name in [*ON_CPU, "qnn"]
        for one in OPERATORS
        if not (TARGETS[name].limits.static and one in OF_FREE_SIZE)
    ],
)
def test_operator_that_no_table_names_says_why_it_stays_in_float(name, operator):
    known = TARGETS[name].operators
    named = known.kernels | known.moves | known.joins | known.absorbs
    proto = sandwich(OPERATORS[operator])
    quantized = insert(proto, batches(proto, 1), Config(target=name))
    reasons = {n.op_type: p.value for n in quantized.graph.node for p in n.metadata_props if p.key == "onnxqat.float"}
    if operator not in named and operator in {n.op_type for n in quantized.graph.node}:
        assert reasons[operator] == f"{name} has no integer kernel for {operator}"


@pytest.mark.parametrize("name", TARGETS)
def test_every_operator_of_the_tables_is_tried(name):
    known = TARGETS[name].operators
    assert known.kernels | known.moves | known.joins | known.absorbs | known.between <= set(OPERATORS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_integer_operator_has_a_matcher(name):
    assert TARGETS[name].operators.kernels <= set(MATCHERS)


@pytest.mark.parametrize("name", TARGETS)
def test_target_is_called_as_its_file(name):
    assert TARGETS[name].name == name


def test_targets_say_the_same_of_the_runtime_that_they_share():
    said = {(one.runtime, one.package, one.x86.pairs_products, one.x86.unknown) for one in TARGETS.values()}
    assert len(said) == len({runtime for runtime, *_ in said})


ATTENTION = """(float[2,6,8] x) => (float[2,6,8] y) { q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)
    kt = Transpose<perm=[0,2,1]>(k) s = MatMul(q, kt) p = Softmax<axis=-1>(s) c = MatMul(p, v) y = MatMul(c, wo) }"""


@pytest.mark.parametrize(("name", "products"), [("ort-cpu", [True, True]), ("openvino", [True, False])])
def test_products_of_attention_run_as_the_table_says(name, products, runtimes):
    weights = {key: r(8, 8, seed=number) for number, key in enumerate(("wq", "wk", "wv", "wo"))}
    proto = model(ATTENTION, opset=20, ir_version=9, **weights)
    deployed = io.load(fold(insert(proto, batches(proto, 1), Config(target=name))))
    produced_by = qdq.by_output(qdq.quantizers(deployed))
    nodes = [node for node in deployed.graph if node.op_type == "MatMul"]
    quantized = [all(quantizer_above(value, produced_by) for value in node.inputs) for node in nodes]
    assert quantized == [True, True, True, *products, True]
    kinds = [
        kernel.kind for kernel in kernels_of(runtimes[TARGETS[name].runtime], deployed) if kernel.op_type == "MatMul"
    ]
    # the kernel of a product of floats whose result is quantized depends on the processor
    assert [kind for kind, is_quantized in zip(kinds, quantized, strict=True) if is_quantized] == ["integer"] * sum(
        quantized
    )


DETECTOR = """(float[2,16,16,16] image) => (float[2,N,4] boxes, float[2,N,3] scores) {
    c = Conv<pads=[1,1,1,1]>(image, w1, b1) f1 = Relu(c) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(f1)
    d = Conv<pads=[1,1,1,1]>(p, w2, b1) f2 = Relu(d)
    h1 = Conv<pads=[1,1,1,1]>(f1, h) t1 = Transpose<perm=[0,2,3,1]>(h1) r1 = Reshape(t1, rows)
    h2 = Conv<pads=[1,1,1,1]>(f2, h) t2 = Transpose<perm=[0,2,3,1]>(h2) r2 = Reshape(t2, rows)
    all = Concat<axis=1>(r1, r2) places, classes = Split<axis=2>(all, parts)
    moved = Sigmoid(places) boxes = Mul(moved, sizes) scores = Sigmoid(classes) }"""


@pytest.mark.parametrize(
    ("name", "in_float"),
    [("tensorrt", {"Mul"}), ("qnn", set()), ("ort-cpu", {"Concat", "Sigmoid", "Mul"})],
)
def test_head_of_a_detector_is_whole_with_all_convolutions_on_integers(name, in_float):
    weights = {"w1": r(32, 16, 3, 3), "w2": r(32, 32, 3, 3, seed=1), "b1": r(32), "h": r(28, 32, 3, 3, scale=0.1)}
    constants = {"rows": np.array([0, -1, 7]), "parts": np.array([4, 3]), "sizes": np.full(4, 16, np.float32)}
    proto = model(DETECTOR, **weights, **constants)
    batch = batches(proto, 1)[0]
    deployed = fold(insert(proto, [batch], Config(target=name)))
    findings = check(deployed)
    assert {one.kind for one in findings} <= {"float"}
    assert {one.node.split()[0] for one in findings} == in_float
    for expected, found in zip(outputs(proto, batch), outputs(deployed, batch), strict=True):
        assert np.square(found - expected).mean() < 3e-3 * np.square(expected).mean()  # logits span ±60
