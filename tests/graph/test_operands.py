"""Inputs of types or sizes that an operator cannot take are refused by node, on loading or where shapes are inferred."""

from __future__ import annotations

import re

import numpy as np
import pytest

from onnxqat.errors import InputError
from onnxqat.graph import io
from onnxqat.graph.types import infer
from tests.models import model, random

#: A node that reads `x` and the weights beside it, and what the refusal says.
BROKEN = {
    "weight of another kind": ("MatMul(x, w)", {"w": np.ones((8, 3), bool)}, "'w' is of type bool, which it does not"),
    "codes as a weight": ("Gemm(x, w)", {"w": np.ones((8, 3), np.int8)}, "'w' is of type int8, which it does not take"),
    "scale that is text": (
        "QuantizeLinear(x, s)",
        {"s": np.array(["1"], np.object_)},
        "'s' is of type string, which it",
    ),
    "indices that are floats": ("Gather(x, s)", {"s": random(2)}, "'s' is of type float, which it does not take"),
    "weight of another precision": (
        "MatMul(x, w)",
        {"w": np.ones((8, 3))},
        "'w' is of type double, but another input that must match it is float",
    ),
    "one bias of another precision": (
        "Gemm(x, w, b)",
        {"w": random(8, 3), "b": random(3).astype(np.float16)},
        "'b' is of type float16, but another input that must match it is float",
    ),
    "Gemm of a vector": ("Gemm(x, w)", {"w": random(8)}, "Gemm 'y': reads a weight of 1 axes, not 2"),
    "Gemm turned": ("Gemm<transB=1>(x, w)", {"w": random(8, 3)}, "reads 8 values in a row, its weight takes 3"),
    "Gemm with a bias too long": (
        "Gemm(x, w, b)",
        {"w": random(8, 3), "b": random(4)},
        "bias of shape [4] does not fit 3",
    ),
    "Gemm with a bias of three axes": (
        "Gemm(x, w, b)",
        {"w": random(8, 3), "b": random(1, 1, 3)},
        "bias of shape [1, 1, 3] does not fit 3",
    ),
    "Conv with a bias too long": (
        "Conv(i, w, b)",
        {"w": random(4, 2, 3, 3), "b": random(5)},
        "bias of shape [5] does not fit 4",
    ),
    "ConvTranspose with a bias too short": (
        "ConvTranspose<group=2>(i, w, b)",
        {"w": random(2, 4, 3, 3), "b": random(4)},
        "bias of shape [4] does not fit 8 channels",
    ),
    "Conv of other channels": ("Conv(i, w)", {"w": random(4, 3, 3, 3)}, "reads data of 2 channels with a weight for 3"),
    "Conv without windows": ("Conv(i, w)", {"w": random(4, 2)}, "reads a weight of 2 axes"),
}
INPUTS = "float[N,8] x, float[N,2,6,6] i"


@pytest.mark.parametrize(("node", "weights", "message"), BROKEN.values(), ids=BROKEN)
def test_inputs_that_an_operator_cannot_take_are_refused(node, weights, message):
    with pytest.raises(InputError, match=re.escape(message)):
        io.load(model(f"({INPUTS}) => (float[A,B] y) {{ y = {node} }}", **weights))


def test_inputs_that_nodes_compute_are_trusted_once_they_are_inferred():
    loaded = io.load(
        model("(float[N,8] x) => (float[N,3] y) { a = MatMul(x, v) y = Gemm(a, w) }", v=random(8, 5), w=random(6, 3))
    )
    with pytest.raises(InputError, match="Gemm 'y': reads 5 values in a row, its weight takes 6"):
        infer(loaded)


@pytest.mark.parametrize("bias", [(), (1,), (3,), (1, 3), (4, 1), (4, 3)], ids=str)
def test_every_bias_that_broadcasts_is_taken(bias):
    io.load(model("(float[4,8] x) => (float[4,3] y) { y = Gemm(x, w, b) }", w=random(8, 3), b=random(*bias)))


@pytest.mark.parametrize(
    "nodes",
    [
        'y = Sum(x, "")',
        'y = Concat<axis=1>(x, "")',
        'y = Einsum<equation="ij,jk->ik">(x, "")',
        '"", b = Split<axis=1>(x) y = Relu(b)',
        'c = Constant<value=bool {1}>() "", y = If(c) <then_branch = t () => (float[A,B] p, float[A,B] q)'
        " { p = Relu(x) q = Neg(x) }, else_branch = e () => (float[A,B] r, float[A,B] s) { r = Relu(x) s = Abs(x) }>",
    ],
    ids=["Sum", "Concat", "Einsum", "Split", "If"],
)
def test_what_is_not_optional_is_not_left_out(nodes):
    # ONNX Runtime ends the process on all of these but Concat
    with pytest.raises(InputError, match=r"leaves out (input 1|output 0), '.*', which is not optional"):
        io.load(model(f"(float[N,8] x) => (float[A,B] y) {{ {nodes} }}"))


def test_what_is_optional_may_be_left_out():
    io.load(model('(float[N,8] x) => (float[A,B] y) { y = Clip(x, "", "") }'))
