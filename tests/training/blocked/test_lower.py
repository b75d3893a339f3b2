"""Blocked layout: the same loss and gradients as in the plain layout, whatever stands between the convolutions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxqat import Config, insert
from onnxqat.graph import io
from onnxqat.graph.ops import BLOCKED
from onnxqat.graph.qdq import is_quantized
from onnxqat.training.blocked import choice
from onnxqat.training.blocked.gradients import can_differentiate
from onnxqat.training.blocked.probe import block
from onnxqat.training.loop.feeds import feeds_for
from onnxqat.training.running.engine import Engine
from onnxqat.training.training_graph.build import load_qdq, training_graph
from tests.models import model, outputs, random

pytestmark = pytest.mark.skipif(not block(), reason="this processor has no blocked convolutions")

HEAD = "(float[N,3,H,W] x) => (float[N,O,P,Q] y) { a = Conv<pads=[1,1,1,1]>(x, w, b) h = Tanh(a)"
FIRST = {"w": random(32, 3, 3, 3), "b": random(32)}


def net(body: str, shape: tuple[int, ...] = (2, 3, 10, 8), **weights: np.ndarray):
    """A network whose first convolution gives 32 channels `h`; images of the shape, whose sizes the model says or leaves free."""
    height, width = shape[2:]
    head = HEAD.replace("H,W", f"{height},{width}")
    return model(f"{head} {body} }}", **FIRST, **weights), random(*shape, scale=1.0)


def wide(*shape: int) -> np.ndarray:
    return random(*shape, scale=0.1)


DENSE, DEPTHWISE = wide(32, 32, 3, 3), random(32, 1, 3, 3)
#: Network, and how many convolutions are blocked: forward, and gradients of data and of depthwise weights.
NETS = {
    "dense": (net("y = Conv<pads=[1,1,1,1]>(h, v)", v=DENSE), 3),
    "without padding": (net("y = Conv(h, v)", v=DENSE), 3),
    "uneven padding": (net("y = Conv<pads=[0,1,2,0]>(h, v)", v=DENSE), 3),
    "window of one": (net("y = Conv(h, v)", v=wide(48, 32, 1, 1)), 3),
    "rectangular window": (net("y = Conv<pads=[0,2,0,2]>(h, v)", v=wide(16, 32, 1, 5)), 3),
    "dilated": (net("y = Conv<pads=[2,2,2,2], dilations=[2,2]>(h, v)", v=DENSE), 3),
    "stride 2": (net("y = Conv<pads=[1,1,1,1], strides=[2,2]>(h, v)", v=DENSE), 3),
    "stride 2, odd size": (net("y = Conv<pads=[1,1,1,1], strides=[2,2]>(h, v)", (2, 3, 9, 7), v=DENSE), 3),
    "stride 2, window of one": (net("y = Conv<strides=[2,2]>(h, v)", v=wide(16, 32, 1, 1)), 3),
    "stride 2, window of five": (net("y = Conv<pads=[2,2,2,2], strides=[2,2]>(h, v)", v=wide(16, 32, 5, 5)), 3),
    "stride 3 and 2": (net("y = Conv<pads=[1,1,1,1], strides=[3,2]>(h, v)", v=DENSE), 2),
    "depthwise": (net("y = Conv<pads=[1,1,1,1], group=32>(h, v)", v=DEPTHWISE), 4),
    "depthwise, bias": (net("y = Conv<pads=[1,1,1,1], group=32>(h, v, c)", v=DEPTHWISE, c=random(32)), 4),
    "depthwise, stride 2": (net("y = Conv<pads=[1,1,1,1], strides=[2,2], group=32>(h, v)", v=DEPTHWISE), 4),
    "depthwise, dilated": (net("y = Conv<pads=[2,2,2,2], dilations=[2,2], group=32>(h, v)", v=DEPTHWISE), 4),
    "groups": (net("y = Conv<pads=[1,1,1,1], group=2>(h, v)", v=wide(32, 16, 3, 3)), 1),
    "channels that fit no block": (net("g = Conv(h, v) y = Conv(g, u)", v=wide(20, 32, 1, 1), u=wide(32, 20, 1, 1)), 1),
    "residual": (
        net("g = Conv<pads=[1,1,1,1]>(h, v) s = Add(g, h) r = Softplus(s) y = Conv(r, u)", v=DENSE, u=DENSE),
        5,
    ),
    "one plain operand": (
        net("g = Conv(x, v) s = Mul(g, h) k = Abs(x) y = Conv(s, u)", v=wide(32, 3, 1, 1), u=DENSE),
        4,
    ),
    "a number for each channel": (net("g = Mul(h, s) y = Conv(g, v)", s=random(1, 32, 1, 1), v=DENSE), 3),
    "masks": (net("m = Greater(h, t) g = Where(m, h, t) y = Conv(g, v)", t=np.float32(0.1), v=DENSE), 3),
    "a mask in the plain layout": (
        net(
            "m = Greater(h, t) k = Transpose<perm=[0,1,3,2]>(m) f = Cast<to=1>(k) g = Conv(h, v) s = ReduceSum(f) y = Mul(g, s)",
            t=np.float32(0.1),
            v=DENSE,
        ),
        3,
    ),
    "maximum pool": (net("p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) y = Conv(p, v)", v=DENSE), 3),
    "maximum pool that overlaps": (
        net("p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(h) y = Conv(p, v)", v=wide(32, 32, 1, 1)),
        3,
    ),
    "maximum pool of any window": (
        net("p = MaxPool<kernel_shape=[4,2], strides=[2,1], pads=[0,1,3,0]>(h) y = Conv(p, v)", v=wide(32, 32, 1, 1)),
        3,
    ),
    "maximum pool whose places are read": (
        net(
            "p, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h) f = Cast<to=1>(i) g = Conv(p, v) y = Mul(g, f)",
            v=wide(32, 32, 1, 1),
        ),
        3,
    ),
    "average pool": (net("p = AveragePool<kernel_shape=[2,2], strides=[2,2]>(h) y = Conv(p, v)", v=DENSE), 3),
    "global pool": (net("g = Conv(h, v) y = GlobalAveragePool(g)", v=DENSE), 3),
    "concatenation": (
        net("g = Conv<pads=[1,1,1,1]>(h, v) j = Concat<axis=1>(g, h) y = Conv(j, u)", v=DENSE, u=wide(16, 64, 1, 1)),
        5,
    ),
    "shared weight": (net("g = Conv<pads=[1,1,1,1]>(h, v) t = Tanh(g) y = Conv(t, v)", v=DENSE), 5),
    "sizes that nothing tells": (
        net("s = Abs(t) g = Reshape(h, s) k = Tanh(g) y = Conv(k, v)", t=np.array([2, 32, 10, 8]), v=DENSE),
        3,
    ),
    "a branch reads it": (
        net(
            "g = Conv(h, v) c = Constant<value = bool {1}>() "
            "y = If<then_branch = th () => (float[N,32,8,6] p) { p = Tanh(g) }, "
            "else_branch = el () => (float[N,32,8,6] q) { q = Neg(g) }>(c)",
            v=DENSE,
        ),
        3,
    ),
}


@pytest.fixture(autouse=True)
def always_lowered(monkeypatch):
    """Takes the blocked form wherever there is one, whether or not it pays."""
    monkeypatch.setattr(choice, "forward_pays", lambda *_: True)
    monkeypatch.setattr(choice, "data_gradient_pays", can_differentiate)
    monkeypatch.setattr(choice, "REORDER", 0)


def engine_of(proto, size: int, engine: str = "auto"):
    loaded = load_qdq(proto) if is_quantized(io.load(proto)) else io.load(proto)
    graph = training_graph(loaded, "mse", block=size, engine=engine)
    return graph, Engine(graph.training, graph.evaluation, graph.layout, graph.initial, 1)


def trained(proto, x: np.ndarray, size: int, engine_name: str = "auto"):
    """Loss, gradients by name, outputs, and the graph."""
    graph, engine = engine_of(proto, size, engine_name)
    batch = {"x": x, "label": np.zeros_like(outputs(proto, {"x": x})[0])}
    feeds = feeds_for(graph, None)(batch)
    loss = engine.step(feeds)
    return loss, dict(graph.layout.named(engine.gradients)), engine.evaluate(feeds, graph.outputs), graph


def blocked(graph) -> int:
    """How many results are computed by blocked convolutions; one of them stands in the loop over samples."""
    return Counter(node.op_type for node in graph.training.graph.all_nodes() if node.domain == BLOCKED)["Conv"]


def assert_same(expected, found, tolerance: float = 1e-6):
    for name, gradient in expected.items():
        assert np.linalg.norm(found[name] - gradient) <= tolerance * np.linalg.norm(gradient), name


@pytest.mark.parametrize("engine", ["auto", "runtime"])
@pytest.mark.parametrize("name", NETS)
def test_gradients_are_those_of_the_plain_layout(name, engine):
    (proto, x), convolutions = NETS[name]
    loss, expected, answers, _ = trained(proto, x, 0)
    other, found, blocked_answers, graph = trained(proto, x, block(), engine)
    assert blocked(graph) == convolutions
    assert other == pytest.approx(loss, rel=1e-6)
    assert_same(expected, found)
    assert_same({"y": answers[0]}, {"y": blocked_answers[0]})


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("size", [(10, 8), (7, 9)], ids=["even", "odd"])
def test_batches_and_images_of_any_size_run(rows, size):
    body = "g = Conv<pads=[1,1,1,1]>(h, v) t = Tanh(g) k = Conv<group=32>(t, u) y = Conv<strides=[2,2]>(k, v)"
    free = model(f"{HEAD} {body} }}", **FIRST, v=DENSE, u=DEPTHWISE)
    x = random(rows, 3, *size, scale=1.0)
    _, expected, _, _ = trained(free, x, 0)
    _, found, _, graph = trained(free, x, block())
    assert blocked(graph) == 7  # the gradient of the data at a stride needs a known size
    assert_same(expected, found)


def test_gradient_of_a_maximum_goes_to_the_first_of_equals():
    body = "r = Relu(h) p = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r) y = Conv(p, v)"
    proto, x = net(body, v=wide(32, 32, 1, 1))
    quantized = with_exact_sums(insert(proto, [{"x": x}], Config(activation_bits=2)))
    _, expected, _, _ = trained(quantized, x, 0)
    _, found, _, graph = trained(quantized, x, block())
    kinds = Counter(node.op_type for node in graph.training.graph if node.domain == BLOCKED)
    assert kinds["MaxPool"] == 2
    assert_same(expected, found, tolerance=1e-5)  # gradients of scales are sums of numbers that cancel


def with_exact_sums(qdq: onnx.ModelProto) -> onnx.ModelProto:
    """The model with powers of two as scales: sums in any order are then the same, and what lies between two codes is too."""
    for tensor in qdq.graph.initializer:
        if tensor.name.endswith("_scale"):
            rounded = np.exp2(np.rint(np.log2(numpy_helper.to_array(tensor)))).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
    return qdq


@pytest.mark.parametrize("opset", [13, 21])
def test_quantized_networks_have_the_same_gradients(opset):
    body = """{ a = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(a) d = Conv<pads=[1,1,1,1], group=32>(r, u) e = Clip(d, zero, six)
        p = Conv(e, v) s = Add(p, r) t = Relu(s) g = GlobalAveragePool(t) f = Flatten(g) y = Gemm(f, k) }"""
    weights = {"v": wide(32, 32, 1, 1), "u": DEPTHWISE, "zero": np.float32(0), "six": np.float32(6), "k": random(32, 4)}
    proto = model(f"(float[N,3,8,8] x) => (float[N,4] y) {body}", opset=opset, **FIRST, **weights)
    x = random(3, 3, 8, 8, scale=1.0)
    quantized = with_exact_sums(insert(proto, [{"x": x}]))
    loss, expected, _, _ = trained(quantized, x, 0)
    other, found, _, graph = trained(quantized, x, block())
    assert loss == other
    kinds = Counter(node.op_type for node in graph.training.graph if node.domain == BLOCKED)
    assert blocked(graph) == 6
    assert kinds["ReorderOutput"] == 4, (
        "only what ConvGrad reads, and the gradient of the depthwise weight, is brought back"
    )
    assert_same(expected, found, tolerance=1e-5)  # gradients of scales are sums of numbers that cancel


def test_a_step_is_bitwise_repeatable():
    (proto, x), _ = NETS["depthwise, bias"]
    (_, first, *_), (_, second, *_) = (trained(proto, x, block()) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_joined_channels_stay_blocked():
    (proto, x), _ = NETS["concatenation"]
    *_, graph = trained(proto, x, block())
    joints = [
        node
        for node in graph.training.graph
        if node.op_type in ("Concat", "Split") and len(node.outputs[0].shape or ()) == 4
    ]
    reordered = {value for node in graph.training.graph if node.op_type == "ReorderInput" for value in node.inputs}
    assert {node.op_type for node in joints} == {"Concat", "Split"}
    assert reordered.isdisjoint(value for node in joints for value in node.outputs)


def test_a_graph_stays_plain_where_reordering_costs_more(monkeypatch):
    (proto, x), _ = NETS["dense"]
    monkeypatch.setattr(choice, "REORDER", 1e9)
    *_, graph = trained(proto, x, block())
    assert not blocked(graph)
    assert not graph.used_block
