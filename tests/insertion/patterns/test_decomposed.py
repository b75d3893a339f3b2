import numpy as np
import onnx
import pytest

from onnxqat.config import Config
from onnxqat.graph import io
from onnxqat.insertion import insert
from onnxqat.insertion.match import find_groups
from onnxqat.insertion.patterns.decomposed import find_wholes
from onnxqat.insertion.preparation import prepare
from onnxqat.runtime import Inference
from onnxqat.targets.openvino import TARGET as OPENVINO
from onnxqat.targets.ort_cpu import TARGET as ORT_CPU
from tests.models import model, random

SIZE = 6


def number(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)


CONSTANTS = {
    "root2": number(2**0.5), "one": number(1), "half": number(0.5), "two": number(2), "three": number(3), "six": number(6),
    "zero": number(0), "eps": number(1e-5), "c": number(0.044715), "r": number((2 / np.pi) ** 0.5), "n": number(SIZE),
    "gamma": random(SIZE), "beta": random(SIZE), "last": np.array([-1]), "shape": np.array([-1, 1]),
    "full": np.array([1, SIZE]),
}  # fmt: skip


def layers(nodes: str) -> onnx.ModelProto:
    """Nodes that make y from x, between two matrix products."""
    used = {k: v for k, v in CONSTANTS.items() if f" {k}" in nodes.replace("(", " ").replace(",", " ")}
    text = f"(float[N,6] input) => (float[N,6] output) {{ x = MatMul(input, w) {nodes} output = MatMul(y, v) }}"
    return model(text, w=random(SIZE, SIZE), v=random(SIZE, SIZE), **used)


def wholes(proto: onnx.ModelProto) -> dict[str, tuple[str, str, int]]:
    """Name of each function that is found → the value it reads, the value it writes, and its number of nodes."""
    found = set(find_wholes(prepare(proto).graph).values())
    return {whole.name: (whole.reads.name, whole.writes.name, len(whole.nodes)) for whole in found}


WRITTEN = {
    "LayerNormalization, PyTorch": ("LayerNormalization", """
        m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) p = Pow(d, two) v2 = ReduceMean<axes=[-1]>(p) e = Add(v2, eps)
        s = Sqrt(e) q = Div(d, s) g = Mul(q, gamma) y = Add(g, beta)"""),
    "LayerNormalization, tf2onnx": ("LayerNormalization", """
        t = ReduceSum(x, last) m = Div(t, n) x2 = Mul(x, x) t2 = ReduceSum(x2, last) e2 = Div(t2, n) m2 = Mul(m, m)
        v2 = Sub(e2, m2) p = Max(v2, zero) a = Add(p, eps) s = Sqrt(a) r1 = Reciprocal(s) k = Mul(r1, gamma) d = Sub(x, m)
        g = Mul(d, k) y = Add(g, beta)"""),
    "Gelu with Erf, PyTorch": ("Gelu", """
        d = Div(x, root2) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)"""),
    "Gelu with Erf, half first": ("Gelu", """
        h = Mul(x, half) d = Div(x, root2) e = Erf(d) a = Add(e, one) y = Mul(h, a)"""),
    "Gelu with Tanh, transformers": ("Gelu", """
        p = Pow(x, three) k = Mul(p, c) s = Add(x, k) t1 = Mul(s, r) t = Tanh(t1) a = Add(t, one) h = Mul(x, half)
        y = Mul(h, a)"""),
    "Gelu with Tanh, JAX": ("Gelu", """
        k = Mul(c, x) k2 = Mul(x, k) k3 = Mul(x, k2) s = Add(x, k3) t1 = Mul(r, s) t = Tanh(t1) a = Add(one, t)
        h = Mul(half, a) y = Mul(x, h)"""),
    "Softmax": ("Softmax", """
        m = ReduceMax<axes=[-1]>(x) d = Sub(x, m) e = Exp(d) s = ReduceSum(e, last) y = Div(e, s)"""),
    "Softmax, JAX": ("Softmax", """
        m = ReduceMax<axes=[-1], keepdims=0>(x) b = Reshape(m, shape) w1 = Expand(b, full) d = Sub(x, w1) e = Exp(d)
        s = ReduceSum<keepdims=0>(e, last) b2 = Reshape(s, shape) y = Div(e, b2)"""),
    "Softmax without maximum": ("Softmax", "e = Exp(x) s = ReduceSum(e, last) y = Div(e, s)"),
    "HardSwish of another height": ("HardSwish", "a = Add(x, three) k = Clip(a, zero, six) y = Mul(x, k)"),
    "HardSwish of another slope": ("HardSwish", "s = HardSigmoid<alpha=0.2>(x) y = Mul(x, s)"),
    "Swish": ("Swish", "s = Sigmoid(x) y = Mul(x, s)"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "nodes"), WRITTEN.values(), ids=WRITTEN)
def test_function_is_found_from_its_one_input_to_its_one_output(name, nodes):
    (reads, writes, count) = wholes(layers(nodes))[name]
    assert (reads, writes) == ("x", "y")
    assert count == nodes.count("=") - nodes.count("<") - nodes.count(", keepdims=")


@pytest.mark.parametrize(("name", "nodes"), WRITTEN.values(), ids=WRITTEN)
def test_its_parts_stay_in_float_and_say_so(name, nodes):
    prepared = prepare(layers(nodes))
    groups, skips = find_groups(prepared, OPENVINO, Config())
    assert [group.node.op_type for group in groups if group.weight is None] == []
    reasons = {skip.node: skip.reason for skip in skips}
    assert {reasons[node] for node in find_wholes(prepared.graph)} == {
        f"part of a {name}, which stays in float as a whole"
    }


NOT_WHOLE = {
    "gate of another value": "s = Sigmoid(x) z = MatMul(input, w) y = Mul(z, s)",
    "tanh": "y = Tanh(x)",
    "sigmoid": "y = Sigmoid(x)",
    "relu6": "y = Clip(x, zero, six)",
    "deviation": "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m) p = Pow(d, two) q = ReduceMean<axes=[-1]>(p) y = Add(q, x)",
    "exponential": "y = Exp(x)",
    "residual": "t = Tanh(x) y = Add(x, t)",
}


@pytest.mark.parametrize("nodes", NOT_WHOLE.values(), ids=NOT_WHOLE)
def test_what_only_resembles_one_is_left_alone(nodes):
    assert wholes(layers(nodes)) == {}


def test_inner_value_that_is_read_elsewhere_too_is_no_part_of_a_whole():
    text = "(float[N,6] x) => (float[N,6] y, float[N,6] e) { e = Exp(x) s = ReduceSum(e, last) y = Div(e, s) }"
    assert find_wholes(io.load(model(text, last=np.array([-1]))).graph) == {}


def test_onnxruntime_multiplies_swish_on_integers():
    groups, _ = find_groups(prepare(layers(WRITTEN["Swish"][1])), ORT_CPU, Config())
    assert [group.node.op_type for group in groups] == ["MatMul", "Sigmoid", "Mul", "MatMul"]


@pytest.mark.parametrize(("name", "nodes"), WRITTEN.values(), ids=WRITTEN)
def test_product_with_written_out_probabilities_depends_on_the_target(name, nodes):
    proto = layers(f"{nodes} other = MatMul(input, w) mixed = MatMul(y, other)")
    proto.graph.node[-1].input[0] = "mixed"
    reasons = [
        skip.reason for skip in find_groups(prepare(proto), OPENVINO, Config())[1] if skip.node.op_type == "MatMul"
    ]
    assert any("attention" in reason for reason in reasons) == (name == "Softmax")


def test_accuracy_is_kept_where_the_target_has_kernels_for_the_parts():
    proto = layers(WRITTEN["LayerNormalization, PyTorch"][1])
    x = random(64, SIZE, seed=3)
    before, after = (_run(m, x) for m in (proto, insert(proto, [{"input": x}], Config(target="openvino"))))
    assert np.abs(after - before).max() < 0.05 * np.abs(before).max()


def _run(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return Inference(proto)({"input": x})["output"]
