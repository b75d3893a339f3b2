"""Whole networks: gradients agree with those of ONNX Runtime's own gradient builder, an independent implementation."""

from __future__ import annotations

import numpy as np
import pytest

from onnxqat import gradients
from onnxqat.runtime import run_exactly
from tests.models import model, random
from tools.gradient_check import builder

_NETWORKS = {
    "convolutions": (
        "(float[2,3,9,9] x, float[8,3,3,3] w, float[8] b, float[8,1,3,3] d, float[4,8,1,1] p, float[4,5] v, int64[2] t)"
        " => (float loss) {"
        " a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]> (x, w, b) r = Relu (a)"
        " e = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=8> (r, d) s = Add (e, r)"
        " q, places = MaxPool <kernel_shape=[2,2], strides=[2,2]> (s) c = Conv (q, p)"
        " g = GlobalAveragePool (c) f = Flatten (g) z = Gemm (f, v)"
        " loss, log = SoftmaxCrossEntropyLoss (z, t) }",
        {"x": (2, 3, 9, 9), "w": (8, 3, 3, 3), "b": (8,), "d": (8, 1, 3, 3), "p": (4, 8, 1, 1), "v": (4, 5)},
        {"t": np.array([4, 0])},
    ),
    "attention": (
        "(int64[2,5] t, float[7,8] e, float[5,8] p, float[8,8] q, float[8,8] k, float[8,8] v, float[8] s, float[8] b)"
        " => (float loss) <int64[4] heads = {0, 0, 2, 4}, int64[3] rows = {0, 0, 8}, float half = {0.5}> {"
        " w = Gather (e, t) x = Add (w, p)"
        " xq = MatMul (x, q) rq = Reshape (xq, heads) tq = Transpose <perm=[0,2,1,3]> (rq)"
        " xk = MatMul (x, k) rk = Reshape (xk, heads) tk = Transpose <perm=[0,2,3,1]> (rk)"
        " xv = MatMul (x, v) rv = Reshape (xv, heads) tv = Transpose <perm=[0,2,1,3]> (rv)"
        " m = MatMul (tq, tk) h = Mul (m, half) a = Softmax (h) c = MatMul (a, tv)"
        " u = Transpose <perm=[0,2,1,3]> (c) o = Reshape (u, rows) r = Add (o, x)"
        " n, mean, inverse = LayerNormalization (r, s, b) g = Erf (n) y = Mul (g, n)"
        " loss = ReduceMean <keepdims=0> (y) }",
        {"e": (7, 8), "p": (5, 8), "q": (8, 8), "k": (8, 8), "v": (8, 8), "s": (8,), "b": (8,)},
        {"t": np.array([[1, 3, 3, 0, 6], [2, 3, 1, 1, 5]])},
    ),
}


@pytest.mark.parametrize(("text", "shapes", "others"), _NETWORKS.values(), ids=_NETWORKS)
def test_gradients_are_those_of_the_builder(text: str, shapes: dict[str, tuple[int, ...]], others: dict) -> None:
    proto = model(text)
    feeds = {name: random(*shape, scale=1.0) for name, shape in shapes.items()} | others
    _, found = gradients(proto, feeds, list(shapes))
    expected = run_exactly(builder.gradient_graph(proto, "loss", list(shapes)), feeds)
    for name, gradient in found.items():
        difference = np.linalg.norm(gradient - expected[f"{name}_grad"])
        assert difference <= 1e-5 * np.linalg.norm(expected[f"{name}_grad"]), name
