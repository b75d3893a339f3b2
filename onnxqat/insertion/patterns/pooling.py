"""Operators with one data input: averages, and activations with an integer kernel."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.insertion.groups import Group, Skip, is_float
from onnxqat.targets import Target


def match(node: ir.Node, target: Target) -> Group | Skip:
    """The data becomes integer; parameters, such as bounds and axes, stay as they are."""
    data = node.inputs[0]
    assert data is not None
    if not is_float(data):
        return Skip(node, f"data {data.name!r} is not float32")
    return Group(node, (data,), node.outputs[0])


_AVERAGES = ["AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"]
_ACTIVATIONS = [
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "LogSoftmax",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
]
_FUNCTIONS = ["Abs", "CumSum", "Exp", "Floor", "Log", "LpNormalization", "Neg", "Reciprocal", "Sin", "Sqrt"]
MATCHERS = dict.fromkeys([*_AVERAGES, *_ACTIVATIONS, *_FUNCTIONS], match)
