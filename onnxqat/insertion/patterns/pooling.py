"""Operators with one data input and their parameters in attributes: averages, and activations with an integer kernel."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.insertion.groups import Group, Skip, is_float
from onnxqat.targets import Target


def match(node: ir.Node, target: Target) -> Group | Skip:
    """AveragePool, GlobalAveragePool, ReduceMean, ReduceSum, LeakyRelu, Sigmoid: the data becomes integer."""
    data = node.inputs[0]
    assert data is not None
    if not is_float(data):
        return Skip(node, f"data {data.name!r} is not float32")
    return Group(node, (data,), node.outputs[0])


MATCHERS = dict.fromkeys(["AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "LeakyRelu", "Sigmoid"], match)
