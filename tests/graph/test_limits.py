"""A small file that asks for a huge value is refused before anything makes it; large weights are not concerned."""

from __future__ import annotations

import resource

import numpy as np
import pytest

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.limits import DEEPEST
from onnxqat.insertion.preparation import prepare
from tests.models import model, random

LINE = "(int64[K] x) => (int64[M] y)"
N = 10**8


def chain(step: str, count: int = 40) -> str:
    """The text of nodes each of which makes more of what the one before it made."""
    nodes = " ".join(f"a{number + 1} = {step.format(f'a{number}')}" for number in range(count))
    return f"{LINE} {{ a0 = Identity(v) {nodes} r = ReduceSum(a{count}) y = Add(x, r) }}"


def outer(node: str) -> str:
    return f"{LINE} {{ a = Reshape(v, row) b = Reshape(v, column) m = {node} r = ReduceSum(m) y = Add(x, r) }}"


LONG = {"v": np.arange(100_000), "row": np.array([1, -1]), "column": np.array([-1, 1])}
BOMBS = {
    "Range": (f"{LINE} {{ r = Range(a, b, c) y = Add(x, r) }}", {"a": 0, "b": N, "c": 1}),
    "Range of steps of 0": (f"{LINE} {{ r = Range(a, b, c) y = Add(x, r) }}", {"a": 0, "b": 8, "c": 0}),
    "ConstantOfShape": (f"{LINE} {{ r = ConstantOfShape<value=int64[1]{{3}}>(a) y = Add(x, r) }}", {"a": [N]}),
    "Expand": (f"{LINE} {{ r = Expand(v, a) y = Add(x, r) }}", {"v": [3], "a": [N]}),
    "Tile": (f"{LINE} {{ r = Tile(v, a) y = Add(x, r) }}", {"v": [3], "a": [N]}),
    "Tile of data": ("(float[N,8] x) => (float[N,M] y) { y = Tile(x, a) }", {"a": [1, N]}),
    "Pad": ("(float[N,8] x) => (float[N,M] y) { y = Pad(x, a) }", {"a": [0, 0, N, N]}),
    "Resize": ("(float[N,3,8,8] x) => (float[N,3,H,W] y) { y = Resize(x, , s) }", {"s": np.float32([1, 1, 1e4, 1e4])}),
    "OneHot": ("(int64[N,8] x) => (float[N,8,M] y) { y = OneHot(x, a, s) }", {"a": N, "s": np.float32([0, 1])}),
    "size that is computed": (f"{LINE} {{ c = Mul(a, a) r = Expand(v, c) y = Add(x, r) }}", {"v": [3], "a": [10**4]}),
    "size of a branch's own": (
        """(int64[K] x, bool c) => (int64[M] y) { y = If<then_branch = t () => (int64[M] p) { p = Tile(x, a) },
            else_branch = e () => (int64[M] q) { q = Identity(x) }>(c) }""",
        {"a": [N]},
    ),
    "doubling Concat": (chain("Concat<axis=0>({0}, {0})"), {"v": [1, 2]}),
    "doubling Tile": (chain("Tile({0}, two)"), {"v": [1, 2], "two": [2]}),
    "growing Gather": (chain("Gather({0}, i)", 10), {"v": [[1]], "i": np.zeros((8, 8), np.int64)}),
    "growing Pad": (chain("Pad({0}, p)"), {"v": [1], "p": [2_000_000, 2_000_000]}),
    "many large constants": (
        f"{LINE} {{ a = Expand(v, s) b = Neg(a) c = Neg(b) d = Neg(c) e = Neg(d) r = ReduceSum(e) y = Add(x, r) }}",
        {"v": [3], "s": [8000, 8000]},
    ),
    "Add of a row and a column": (outer("Add(a, b)"), LONG),
    "MatMul of a row and a column": (outer("MatMul(b, a)"), LONG),
    "Einsum of a vector with itself": (
        f'{LINE} {{ m = Einsum<equation="a,b->ab">(v, v) r = ReduceSum(m) y = Add(x, r) }}',
        {"v": np.arange(100_000)},
    ),
    "Einsum of short vectors": (
        f'{LINE} {{ m = Einsum<equation="a,b,c,d->abcd">(v, v, v, v) r = ReduceSum(m) y = Add(x, r) }}',
        {"v": np.arange(1000)},
    ),
    "random numbers": ("(float[N] x) => (float[M] y) { r = RandomNormal<shape=[99999,99999]>() y = Add(x, r) }", {}),
    "strides": (
        "(float[N,3,8,8] x) => (float[N,4,H,W] y) { y = ConvTranspose<strides=[65536,65536]>(x, w) }",
        {"w": random(3, 4, 2, 2)},
    ),
}


@pytest.mark.parametrize(("body", "weights"), BOMBS.values(), ids=BOMBS)
def test_constants_that_ask_for_a_huge_value_are_refused_by_node_and_limit(body, weights):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"the limit here is|beyond what runtimes can carry out"):
        io.load(model(body, **{name: np.asarray(array) for name, array in weights.items()}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize("size", [30_000, 200_000], ids=["that could be made", "that could not"])
def test_product_of_constants_that_is_huge_is_refused(size):
    body = "(float[K] x) => (float[M] y) { c = MatMul(a, b) y = Add(x, c) }"
    with pytest.raises(InputError, match=r"MatMul .* makes a value of .* elements, the limit here is"):
        prepare(model(body, a=np.ones((size, 1), np.float32), b=np.ones((1, size), np.float32)))


def test_large_masks_of_transformers_pass():
    body = "(float[N,8192,8192] x) => (float[N,8192,8192] y) { m = ConstantOfShape(s) t = Trilu<upper=1>(m) y = Add(x, t) }"
    io.load(model(body, s=np.array([8192, 8192])))


def test_positions_of_long_sequences_pass():
    body = "(float[N,K] x) => (float[N,K] y) { r = Range(a, b, c) f = Cast<to=1>(r) y = Mul(x, f) }"
    io.load(model(body, a=np.int64(0), b=np.int64(1_000_000), c=np.int64(1)))


def nested(depth: int) -> str:
    """The text of a node within that many Ifs."""
    text = "Relu(x)"
    for level in range(depth):
        branches = (
            f"then_branch = t{level} () => (float[N,8] a{level}) {{ a{level} = {text} }}, else_branch = e{level} ()"
        )
        text = f"If<{branches} => (float[N,8] b{level}) {{ b{level} = Tanh(x) }}>(c)"
    return text


@pytest.mark.parametrize("depth", [3, 12, 13, 25])
def test_branches_in_branches_are_loaded_up_to_a_depth(depth):
    proto = model(f"(float[N,8] x, bool c) => (float[N,8] y) {{ y = {nested(depth)} }}")
    if depth <= DEEPEST:
        io.load(proto)
        return
    with pytest.raises(InputError, match="is within 13 graphs, the limit here is 12"):
        io.load(proto)
