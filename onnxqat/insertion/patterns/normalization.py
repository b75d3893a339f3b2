"""Normalizations with a scale and a shift: LayerNormalization, InstanceNormalization."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.insertion.groups import Group, Skip, is_float
from onnxqat.targets import Target


def match(node: ir.Node, target: Target) -> Group | Skip:
    """The data becomes integer, and the scale an integer operand of one grid; the shift is a bias."""
    data, scale = node.inputs[0], node.inputs[1]
    assert data is not None
    assert scale is not None
    if not is_float(data):
        return Skip(node, f"data {data.name!r} is not float32")
    if constant(scale) is None:
        return Skip(node, f"scale {scale.name!r} is computed at run time")
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return Skip(node, "its mean or deviation is read too")
    last = data.shape is not None and data.shape.rank() - 1
    if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) not in (-1, last):
        return Skip(node, "it normalizes over more than the last axis")
    return Group(node, (data,), node.outputs[0], constants=(scale,))


MATCHERS = dict.fromkeys(["LayerNormalization", "InstanceNormalization"], match)
