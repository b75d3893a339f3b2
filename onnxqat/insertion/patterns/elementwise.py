"""Arithmetic on values of the same grid of elements: Add, Sub, Mul, Div, Min, Max, Pow, Sqrt, Concat."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.insertion.groups import Group, Skip, inputs, is_float
from onnxqat.targets import Target


def match(node: ir.Node, target: Target) -> Group | Skip:
    """Every operand becomes an integer; shape arithmetic on int64 is not a candidate."""
    reads = tuple(inputs(node))
    if not all(is_float(value) for value in reads):
        return Skip(node, "its operands are not float32")
    fixed = [value.name for value in reads if constant(value) is not None]
    if fixed:
        return Skip(node, f"its operand {fixed[0]!r} is constant: one scale would suit it badly")
    return Group(node, reads, node.outputs[0])


MATCHERS = dict.fromkeys(["Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "Sqrt", "Concat"], match)
