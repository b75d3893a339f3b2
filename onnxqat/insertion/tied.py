"""Tied tables: embeddings that the last layer multiplies with again are one initializer, and trained as one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxqat.graph.constants import constant
from onnxqat.graph.edit import fresh_name, fresh_value_name, replace_value

#: Tables of fewer different numbers may be equal by chance: as initialized, or one-hot. Only the first elements are looked at.
DIFFERENT, LOOKED_AT = 16, 4096


def share_tables(graph: ir.Graph) -> None:
    """Lets a Gather read the weight of the MatMul or Gemm that is bit for bit its table, or that transposed.

    Exporters write a tied table twice, and folding the Transpose of one does as well; the two would be trained apart. Other equal
    weights stay apart: nothing tells that they were meant to be one.
    """
    for gather in [node for node in graph if node.op_type == "Gather" and not node.attributes.get_int("axis", 0)]:
        table = gather.inputs[0]
        array = constant(table)
        if table is None or array is None or array.ndim != 2 or array.dtype != np.float32 or not _is_telling(array):
            continue
        for weight in _weights(graph):
            other = constant(weight)
            if weight is table or other is None:
                break
            if other.shape == array.shape and np.array_equal(other, array):
                gather.replace_input_with(0, weight)
                break
            if other.shape == array.shape[::-1] and np.array_equal(other.T, array):
                _gather_columns(graph, gather, weight)
                break


def _is_telling(table: NDArray[np.float32]) -> bool:
    return len(np.unique(table.reshape(-1)[:LOOKED_AT])) >= DIFFERENT


def _weights(graph: ir.Graph) -> list[ir.Value]:
    """The constant matrices that layers multiply with."""
    found = (node.inputs[1] for node in graph if node.op_type in ("MatMul", "Gemm"))
    return list(dict.fromkeys(v for v in found if v is not None and v.is_initializer() and not v.is_graph_input()))


def _gather_columns(graph: ir.Graph, gather: ir.Node, weight: ir.Value) -> None:
    """Rows of a table are columns of the weight: those are gathered, and their axis becomes the last."""
    result, indices = gather.outputs[0], gather.inputs[1]
    if indices is None or indices.shape is None:
        return
    gather.replace_input_with(0, weight)
    gather.attributes["axis"] = ir.AttrInt64("axis", 1)
    turn = ir.node("Transpose", [result], {"perm": [*range(1, indices.shape.rank() + 1), 0]})
    turn.name = fresh_name(graph, f"{gather.name}_Transpose")
    turned = turn.outputs[0]
    turned.name, turned.type, turned.shape = fresh_value_name(graph, str(turn.name)), result.type, result.shape
    replace_value(graph, result, turned)
    turn.replace_input_with(0, result)
    result.shape = None
    graph.insert_after(gather, turn)
