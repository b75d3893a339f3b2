"""Arithmetic on values of the same grid of elements: Add, Sub, Mul, Div, Min, Max, Pow, PRelu, Concat."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.insertion.groups import Group, Skip, inputs, is_float
from onnxqat.targets import Target


def match(node: ir.Node, target: Target) -> Group | Skip:
    """Every operand becomes an integer; shape arithmetic on int64 is not a candidate."""
    operands = inputs(node)
    if not all(is_float(value) for value in operands):
        return Skip(node, "its operands are not float32")
    constants = tuple(value for value in operands if constant(value) is not None)
    if constants and not target.placement.whole:
        return Skip(node, f"its operand {constants[0].name!r} is constant: one scale would suit it badly")
    reads = tuple(value for value in operands if value not in constants)
    return Group(node, reads, node.outputs[0], constants=constants)


MATCHERS = dict.fromkeys(["Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "PRelu", "Concat"], match)
