"""Follows data movement: upstream to the values that data comes from, the places of quantizers; downstream to what joins it."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from onnxqat.graph.movement import EXTREMES, moved
from onnxqat.insertion.fills import is_filled
from onnxqat.insertion.groups import inputs
from onnxqat.targets import Target


def origins(value: ir.Value, target: Target) -> list[ir.Value]:
    """Returns the values that the data of `value` comes from, upstream of all data movement; several for joined inputs.

    A maximum of data with fill values beside it is an origin: fill values are lost behind it.
    """
    node = value.producer()
    if node is None:
        return [value]
    if node.op_type in target.operators.joins:
        return list(dict.fromkeys(above for source in inputs(node) for above in origins(source, target)))
    source = moved(node, target.operators.moves)
    if source is None:
        return [value]
    found = origins(source, target)
    return [value] if node.op_type in EXTREMES and any(map(is_filled, found)) else found


def are_around_middle(values: Collection[ir.Value], graph: ir.Graph, target: Target) -> bool:
    """Whether codes of values with negative numbers are unsigned for what else is in the graph."""
    readers = {user.op_type for value in values for user, _ in value.uses()}
    only_signed = bool(readers) and readers <= target.activations.signed_for
    return not only_signed and any(node.op_type in target.activations.unsigned_beside for node in graph.all_nodes())
