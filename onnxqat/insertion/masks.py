"""Values that hold masks: -1e9 and the like beside data, which no grid of 8 bits holds together."""

from __future__ import annotations

import onnx_ir as ir

from onnxqat.graph.biases import masks
from onnxqat.graph.constants import constant
from onnxqat.graph.movement import MOVEMENT
from onnxqat.insertion.groups import inputs, is_float

#: Operators that put a constant operand beside data, or pass on what holds one.
_CARRYING = frozenset({"Add", "Sub", "Mul", "Div", "Neg", "Where", "Concat", "ScatterElements", "ScatterND"}) | MOVEMENT


def masked_values(graph: ir.Graph) -> set[ir.Value]:
    """The values of the graph that masks reach, up to a Softmax or any other operator that is none of arithmetic."""
    found: set[ir.Value] = set()
    for node in graph:
        operands = [value for value in inputs(node) if is_float(value)] if node.op_type in _CARRYING else []
        if any(value in found or _is_mask(value) for value in operands):
            found.update(node.outputs)
    return found


def _is_mask(value: ir.Value) -> bool:
    array = constant(value)
    return array is not None and masks(array)
