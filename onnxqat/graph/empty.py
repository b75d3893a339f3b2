"""Operators at which ONNX Runtime 1.19 crashes if a tensor has no elements."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxqat.errors import InputError

#: Operators that crash, by a division by zero or worse.
_FATAL = frozenset({"Einsum", "GRU", "LSTM", "LpNormalization", "TopK"})
#: Operators whose output may have elements where the first input has none.
_FILLING = frozenset(
    {"Pad", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum", "Shape", "Size", "ConstantOfShape", "NonZero"}
)


def fatal_when_empty(graph: ir.Graph) -> dict[str, str]:
    """Inputs that must not be empty, each with the operator at which ONNX Runtime would crash."""
    if not any(node.op_type in _FATAL for node in graph.all_nodes()):
        return {}
    found = {str(value.name): _reached(graph, value) for value in graph.inputs}
    return {name: operator for name, operator in found.items() if operator is not None}


def check_not_empty(fatal: Mapping[str, str], feeds: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Raises InputError where an input is empty that `fatal_when_empty` names."""
    for name, operator in fatal.items():
        if name in feeds and np.size(feeds[name]) == 0:
            raise InputError(f"input {name!r}: is empty, at which {operator} crashes ONNX Runtime; feed an element")


def _reached(graph: ir.Graph, start: ir.Value) -> str | None:
    """The first such operator that has nothing to read if the input is empty."""
    empty = {start}
    for node in graph.all_nodes():
        given = [value for value in node.inputs if value is not None]
        joins = node.op_type == "Concat" and not empty.issuperset(given)
        if empty.isdisjoint(given) or joins or node.op_type in _FILLING:
            continue
        if node.op_type in _FATAL:
            return str(node.op_type)
        empty.update(node.outputs)
    return None
