"""Operators along an axis that the runtime computes rightly along the last one only: others get transposed data."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import constant_value, fresh_name, fresh_value_name, replace_value
from onnxqat.insertion.groups import is_float


def turn_to_last_axis(graph: ir.Graph, operators: frozenset[str]) -> None:
    """Puts a Transpose before and behind each float CumSum of these operators whose axis is not the last, in place."""
    for node in list(graph):
        order = _order(node) if node.op_type in operators else None
        if order is not None:
            _turn(graph, node, order)


def _order(node: ir.Node) -> list[int] | None:
    """Order of axes that puts the node's own behind the others, by swapping it with the last; None where it is the last."""
    data, axis = node.inputs[0], constant(node.inputs[1])
    if data is None or not is_float(data) or data.shape is None or axis is None:
        return None
    rank = data.shape.rank()
    own = int(axis.item()) % rank
    order = list(range(rank))
    order[own], order[-1] = order[-1], order[own]
    return None if own == rank - 1 else order


def _turn(graph: ir.Graph, node: ir.Node, order: list[int]) -> None:
    data, result = node.inputs[0], node.outputs[0]
    before, behind = (ir.node("Transpose", [value], {"perm": order}) for value in (data, result))
    for turn, shape in ((before, _turned(data, order)), (behind, result.shape)):
        turn.name = fresh_name(graph, f"{node.name}_Transpose")
        turn.outputs[0].name = fresh_value_name(graph, f"{turn.name}_output")
        turn.outputs[0].type, turn.outputs[0].shape = result.type, shape
        (graph.insert_before if turn is before else graph.insert_after)(node, turn)
    replace_value(graph, result, behind.outputs[0])
    behind.replace_input_with(0, result)
    node.replace_input_with(0, before.outputs[0])
    node.replace_input_with(1, constant_value(graph, f"{node.name}_axis", np.asarray(len(order) - 1, np.int64)))
    result.shape = before.outputs[0].shape


def _turned(value: ir.Value | None, order: list[int]) -> ir.Shape | None:
    return None if value is None or value.shape is None else ir.Shape([value.shape[axis] for axis in order])
